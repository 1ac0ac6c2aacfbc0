"""Attention on dense batches: the oracle and torch's fused kernel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.ops.autocast import lowered
from fewstep.ops.table import Kernel, dispatch, register


def reference_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Explicit softmax attention: the oracle that every other kernel is compared with.

    Half-precision input is computed in float32, as fused kernels accumulate there too.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    qh, kh, vh = (x.transpose(1, 2).to(dtype) for x in (q, k, v))
    # Scaling q, the smaller operand, saves a pass over the score matrix.
    scores: Tensor = (qh * q.shape[-1] ** -0.5) @ kh.transpose(-1, -2)
    return (scores.softmax(-1) @ vh).transpose(1, 2).to(v.dtype)


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``torch.nn.functional.scaled_dot_product_attention`` on the same layout."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


def _same_dtype(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    if q.dtype == k.dtype == v.dtype:
        return None
    return f"dtypes differ ({q.dtype}, {k.dtype}, {v.dtype})"


register(
    Kernel(
        "reference",
        "attention",
        reference_attention,
        frozenset({"forward", "backward", "jvp"}),
        priority=0,
        backend="reference",
    )
)
register(
    Kernel(
        "sdpa",
        "attention",
        sdpa_attention,
        frozenset({"forward", "backward"}),
        priority=10,
        backend="torch",
        check=_same_dtype,
    )
)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v for each head, with the best kernel for this call.

    Args:
        q: ``[B, Lq, H, D]``.
        k: ``[B, Lk, H, D]``.
        v: ``[B, Lk, H, D]``.

    Returns:
        ``[B, Lq, H, D]``.

    Raises:
        FewstepError: no kernel can serve the call.
    """
    q, k, v = lowered(q, k, v)
    out: Tensor = dispatch("attention", q, k, v).run(q, k, v)
    return out
