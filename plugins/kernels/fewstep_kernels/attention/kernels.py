"""The op table's entries for attention. Triton is imported when one of them runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fewstep.core.layout import Packed
from fewstep.ops.attention import NO_TANGENT, sdpa_attention
from fewstep.ops.table import ALL, Kernel
from fewstep_kernels.attention.schedule import Sequences, uniform
from fewstep_kernels.attention.windows import sequences
from fewstep_kernels.support import nested, reason

WIDEST = 128  # channels of a head
FEW, LONG = 16, 2048  # most samples, and least mean rows per sample, for which SDPA sample by sample pays


Attend = Callable[[Tensor, Tensor, Tensor, Sequences], Tensor]


def _attend(q: Tensor, k: Tensor, v: Tensor, seq: Sequences) -> Tensor:
    from fewstep_kernels.attention.function import differentiable

    return differentiable(q, k, v, seq)


def _values(q: Tensor, k: Tensor, v: Tensor, seq: Sequences) -> Tensor:
    """The values, without autograd."""
    from fewstep_kernels.attention.launch import forward

    return forward(q, k, v, seq)[0]


def varlen(q: Tensor, k: Tensor, v: Tensor, q_layout: Packed, k_layout: Packed, attend: Attend = _attend) -> Tensor:
    """Packed attention: [T, H, D], see :func:`fewstep.ops.varlen_attention`."""
    return attend(q, k, v, Sequences(q_layout, k_layout))


def windowed(
    q: Tensor, k: Tensor, v: Tensor, layout: Packed, size: int, shift: int, attend: Attend = _attend
) -> Tensor:
    """Window attention that reads and writes rows in place, see ``fewstep_shapes3d.sparse.windowed_attention``."""
    return attend(q, k, v, sequences(layout, size, shift))


def dense(q: Tensor, k: Tensor, v: Tensor, attend: Attend = _attend) -> Tensor:
    """Attention on a batch of equal lengths: [B, L, H, D], see :func:`fewstep.ops.attention`."""
    batch, length = q.shape[:2]
    seq = Sequences(uniform(batch, length, q.device), uniform(batch, k.shape[1], q.device))
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    out: Tensor = attend(q, k, v, seq).unflatten(0, (batch, length))
    return out


def by_sample(q: Tensor, k: Tensor, v: Tensor, q_layout: Packed, k_layout: Packed) -> Tensor:
    """torch's fused attention, one call per sample. cuDNN's backward pass is twice as fast as ours in Triton."""
    parts = (q.split(q_layout.lengths_list), k.split(k_layout.lengths_list), v.split(k_layout.lengths_list))
    return torch.cat([sdpa_attention(*(x[None] for x in sample))[0] for sample in zip(*parts, strict=True)])


def few_and_long(q_layout: Packed, k_layout: Packed) -> str | None:
    """Why one call per sample does not pay; None where it does."""
    if q_layout.batch_size > FEW or q_layout.rows < LONG * q_layout.batch_size:
        return f"more than {FEW} samples, or fewer than {LONG} rows a sample"
    return "a sample is empty" if 0 in (*q_layout.lengths_list, *k_layout.lengths_list) else None


def check_by_sample(q: Tensor, k: Tensor, v: Tensor, q_layout: Packed, k_layout: Packed) -> str | None:
    """None where samples are few and long, and the Triton kernel can serve the forward pass; else why not."""
    return check(q, k, v) or few_and_long(q_layout, k_layout)


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
    """Why a call under a ``torch.func`` transform is left to other kernels; None where it is not."""
    return nested(q, k, v)


def _kernel(name: str, op: str, run: Callable[..., Tensor], priority: int) -> Kernel:
    return Kernel(name, op, run, ALL, priority, "triton", check, guard, partial(run, attend=_values))


# Serves gradients; for values alone Triton is fastest (``direct``).
BY_SAMPLE = Kernel(
    "sdpa-by-sample", "varlen_attention", by_sample, NO_TANGENT, 25, "torch", check_by_sample,
    direct=partial(varlen, attend=_values),
)  # fmt: skip
VARLEN = _kernel("triton-varlen", "varlen_attention", varlen, 20)
WINDOWED = _kernel("triton-windowed", "windowed_attention", windowed, 20)
# Below torch's fused attention, which is faster at equal lengths but has no tangents.
DENSE = _kernel("triton-dense", "attention", dense, 5)
