"""What the tests of Triton kernels share. They run on the GPU where there is one, else under Triton's interpreter."""

from __future__ import annotations

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
TYPES = tuple(TOLERANCE)


def relative_rms(got: Tensor, wanted: Tensor) -> float:
    """|got - wanted| / |wanted| over all elements, in float64; the plain size of ``got`` where nothing is wanted."""
    a, b = got.detach().double().cpu(), wanted.detach().double().cpu()
    assert a.shape == b.shape
    size = b.norm().item()
    return (a - b).norm().item() / size if size else a.norm().item()


def close(got: Tensor, wanted: Tensor, dtype: torch.dtype, what: str = "") -> None:
    """Within the tolerance of ``dtype``, and of that type."""
    assert got.dtype == dtype, f"{what}: {got.dtype}"
    error = relative_rms(got, wanted)
    assert error <= TOLERANCE[dtype], f"{what}: relative RMS {error:.2e}"
