"""The first half of a feed-forward network: a linear layer and its GELU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.errors import invalid
from fewstep.ops.autocast import autocasting
from fewstep.ops.gemm import product
from fewstep.ops.table import Kernel, dispatch, register


def reference_linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The oracle of :func:`linear_gelu`: a product, then the tanh form of GELU."""
    hidden = product(x.reshape(-1, x.shape[-1]), weight, bias)
    return F.gelu(hidden, approximate="tanh").view(*x.shape[:-1], len(weight))


def epilogue_linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One call of cuBLASLt, whose epilogue adds the bias and takes the GELU before anything is written.

    Only on CUDA is this the tanh form (``torch/_decomp/decompositions.py`` says so too); on a CPU it is the exact one.
    """
    rows = x.reshape(-1, x.shape[-1])
    out: Tensor = torch._addmm_activation(bias, rows, weight.t(), use_gelu=True)
    return out.view(*x.shape[:-1], len(weight))


def _has_epilogue(x: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    if x.device.type != "cuda" or torch.version.hip is not None:
        return f"tensors on {x.device.type}: cuBLASLt is CUDA's"
    if not hasattr(torch, "_addmm_activation"):
        return "this torch has no _addmm_activation"
    if bias is None:
        return "no bias"
    if autocasting(x) and x.dtype == torch.float32:
        return "autocast, which casts the weights once and for all calls"
    if not x.numel():
        return "no rows"
    if not x.dtype == weight.dtype == bias.dtype:
        return f"types differ ({x.dtype}, {weight.dtype}, {bias.dtype})"
    return None if x.dtype in (torch.float16, torch.bfloat16, torch.float32) else f"type {x.dtype}"


register(
    Kernel(
        "reference",
        "linear_gelu",
        reference_linear_gelu,
        frozenset({"forward", "backward", "jvp"}),
        priority=0,
        backend="reference",
    )
)
register(
    Kernel(
        "cublaslt-epilogue",
        "linear_gelu",
        epilogue_linear_gelu,
        # Its derivative needs the values before the GELU, which it does not keep.
        frozenset({"forward"}),
        priority=10,
        backend="torch",
        check=_has_epilogue,
    )
)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """GELU(x weight' + bias), in the tanh form (Hendrycks and Gimpel 2016).

    Without gradients and tangents a GPU takes both in one call; the table in ``fewstep.ops.norms`` counts the bytes.

    Args:
        x: [..., K].
        weight: [N, K].
        bias: [N] or None.

    Returns:
        [..., N].

    Raises:
        FewstepError: for shapes that do not fit together.
    """
    if weight.dim() != 2 or x.shape[-1:] != weight.shape[1:] or (bias is not None and bias.shape != weight.shape[:1]):
        got = [tuple(v.shape) for v in (x, weight, bias) if v is not None]
        raise invalid("shapes of x, weight, bias", got, "[..., K], [N, K], [N]")
    out: Tensor = dispatch("linear_gelu", x, weight, bias).run(x, weight, bias)
    return out
