"""The op table's entries for attention. Triton is imported when one of them runs."""

from __future__ import annotations

from torch import Tensor

from fewstep.core.layout import Packed
from fewstep.ops.geometry import windows
from fewstep.ops.opaque import opaque
from fewstep.ops.table import Kernel
from fewstep_kernels.attention.compiled import AttentionLaunches
from fewstep_kernels.attention.schedule import Sequences, uniform
from fewstep_kernels.support import nested, reason

ALL = frozenset({"forward", "backward", "jvp"})
WIDEST = 128  # channels of a head


def _attend(q: Tensor, k: Tensor, v: Tensor, seq: Sequences) -> Tensor:
    from fewstep_kernels.attention.function import differentiable

    return differentiable(q, k, v, seq)


def varlen(q: Tensor, k: Tensor, v: Tensor, q_layout: Packed, k_layout: Packed) -> Tensor:
    """Packed attention: [T, H, D], see :func:`fewstep.ops.varlen_attention`."""
    return _attend(q, k, v, _packed(q, k, v, q_layout, k_layout))


def windowed(q: Tensor, k: Tensor, v: Tensor, layout: Packed, size: int, shift: int) -> Tensor:
    """Window attention that reads and writes rows where they are, see :func:`fewstep.ops.windowed_attention`."""
    return _attend(q, k, v, _windows(q, k, v, layout, size, shift))


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention on a batch of equal lengths: [B, L, H, D], see :func:`fewstep.ops.attention`."""
    batch, length = q.shape[:2]
    seq = _batch(q, k, v)
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    out: Tensor = _attend(q, k, v, seq).unflatten(0, (batch, length))
    return out


def _packed(q: Tensor, k: Tensor, v: Tensor, q_layout: Packed, k_layout: Packed) -> Sequences:
    return q_layout.once(("sequences", k_layout), lambda: Sequences(q_layout, k_layout))


def _windows(q: Tensor, k: Tensor, v: Tensor, layout: Packed, size: int, shift: int) -> Sequences:
    def build() -> Sequences:
        found = windows(layout, size, shift)
        return Sequences(found.layout, found.layout, found.order)

    return layout.once(("window sequences", size, shift), build)


def _batch(q: Tensor, k: Tensor, v: Tensor) -> Sequences:
    queries, keys = (uniform(q.shape[0], x.shape[1], q.device) for x in (q, k))
    return _packed(q, k, v, queries, keys)


def check(q: Tensor, k: Tensor, v: Tensor, *_: object) -> str | None:
    """Why these kernels cannot serve; None where they can."""
    if why := reason(q, k, v):
        return why
    if not q.shape[-1] == k.shape[-1] == v.shape[-1]:
        return f"head widths differ ({q.shape[-1]}, {k.shape[-1]}, {v.shape[-1]})"
    if q.shape[-1] > WIDEST:
        return f"heads of {q.shape[-1]} channels (it has up to {WIDEST})"
    return nested()


_varlen = opaque("varlen_attention_triton", AttentionLaunches(_packed), varlen)
_windowed = opaque("windowed_attention_triton", AttentionLaunches(_windows), windowed)
_dense = opaque("attention_triton", AttentionLaunches(_batch), dense)
VARLEN = Kernel("triton-varlen", "varlen_attention", _varlen, ALL, 20, "triton", check)
WINDOWED = Kernel("triton-windowed", "windowed_attention", _windowed, ALL, 20, "triton", check)
# Behind torch's fused attention, which is published to be as fast at fixed shapes; this one has tangents.
DENSE = Kernel("triton-dense", "attention", _dense, ALL, 5, "triton", check)
