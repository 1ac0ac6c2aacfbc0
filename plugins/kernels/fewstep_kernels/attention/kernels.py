"""The op table's entries for attention. Triton is imported when one of them runs."""

from __future__ import annotations

from fewstep_shapes3d.sparse.windows import windows
from torch import Tensor

from fewstep.core.layout import Packed
from fewstep.ops.table import ALL, Kernel
from fewstep_kernels.attention.schedule import Sequences, uniform
from fewstep_kernels.support import nested, reason

WIDEST = 128  # channels of a head


def _attend(q: Tensor, k: Tensor, v: Tensor, seq: Sequences) -> Tensor:
    from fewstep_kernels.attention.function import differentiable

    return differentiable(q, k, v, seq)


def varlen(q: Tensor, k: Tensor, v: Tensor, q_layout: Packed, k_layout: Packed) -> Tensor:
    """Packed attention: [T, H, D], see :func:`fewstep.ops.varlen_attention`."""
    return _attend(q, k, v, Sequences(q_layout, k_layout))


def windowed(q: Tensor, k: Tensor, v: Tensor, layout: Packed, size: int, shift: int) -> Tensor:
    """Window attention that reads and writes rows in place, see ``fewstep_shapes3d.sparse.windowed_attention``."""
    found = windows(layout, size, shift)
    return _attend(q, k, v, Sequences(found.layout, found.layout, found.order))


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention on a batch of equal lengths: [B, L, H, D], see :func:`fewstep.ops.attention`."""
    batch, length = q.shape[:2]
    seq = Sequences(uniform(batch, length, q.device), uniform(batch, k.shape[1], q.device))
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    out: Tensor = _attend(q, k, v, seq).unflatten(0, (batch, length))
    return out


def check(q: Tensor, k: Tensor, v: Tensor, *_: object) -> str | None:
    """Why these kernels cannot serve; None where they can."""
    if why := reason(q, k, v):
        return why
    if not q.shape[-1] == k.shape[-1] == v.shape[-1]:
        return f"head widths differ ({q.shape[-1]}, {k.shape[-1]}, {v.shape[-1]})"
    if q.shape[-1] > WIDEST:
        return f"heads of {q.shape[-1]} channels (it has up to {WIDEST})"
    return None


def guard(q: Tensor, k: Tensor, v: Tensor, *_: object) -> str | None:
    """Which transforms of ``torch.func`` it leaves to others."""
    return nested(q, k, v)


VARLEN = Kernel("triton-varlen", "varlen_attention", varlen, ALL, 20, "triton", check, guard)
WINDOWED = Kernel("triton-windowed", "windowed_attention", windowed, ALL, 20, "triton", check, guard)
# Behind torch's fused attention, which is published to be as fast at fixed shapes; this one has tangents.
DENSE = Kernel("triton-dense", "attention", dense, ALL, 5, "triton", check, guard)
