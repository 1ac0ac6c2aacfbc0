"""What the tests of Triton kernels share. They run on the GPU where there is one, else under Triton's interpreter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

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


class Launches(TorchDispatchMode):
    """Counts what a GPU is given to do: torch's ops, without views and new memory, and kernels in Triton.

    One of torch's ops may be several launches (a sort is), so the count is a lower bound.
    """

    free = (
        "empty",
        "empty_like",
        "empty_strided",
        "new_empty",
        "detach",
        "alias",
        "_unsafe_view",
        "_local_scalar_dense",
    )

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.inside = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not (self.inside or func.is_view or name in self.free):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))

    def taken(self) -> Counter[str]:
        """What was counted since the last time."""
        found, self.found = self.found, Counter()
        return found


class Watched:
    """A kernel whose launches are counted; what the interpreter does for one is not. ``kernel`` None does nothing."""

    def __init__(self, kernel: Any, name: str, launches: Launches) -> None:
        self.kernel, self.name, self.launches = kernel, name, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: Any, **options: Any) -> None:
            self.launches.found[self.name] += 1
            if self.kernel is None:
                return
            self.launches.inside = True
            try:
                self.kernel[grid](*args, **options)
            finally:
                self.launches.inside = False

        return launch


@contextmanager
def launches_of(monkeypatch: pytest.MonkeyPatch, indices_only: bool = False) -> Iterator[Launches]:
    """Every launch within the block: of torch's ops, and of the kernels of attention, convolution and norms.

    With ``indices_only`` those on features are counted and not run.
    """
    counting = Launches()
    for name in ("attention.forward", "attention.windows", "convolution.conv", "convolution.map", "norms.gate",
                 "norms.heads", "norms.modulation"):  # fmt: skip
        module = import_module(f"fewstep_kernels.{name}_jit")
        runs = not indices_only or name.endswith(("windows", "map"))
        for kernel in [k for k in vars(module) if k.endswith("_kernel")]:
            monkeypatch.setattr(module, kernel, Watched(getattr(module, kernel) if runs else None, kernel, counting))
    with counting:
        yield counting
