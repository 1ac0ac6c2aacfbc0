"""Attention on dense batches and on packed sequences: the reference oracles and torch's fused kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.core.layout import Packed
from fewstep.errors import FewstepError, invalid
from fewstep.ops.calls import call
from fewstep.ops.example import Draw
from fewstep.ops.inputs import lowered
from fewstep.ops.table import ALL, Kernel, register


def reference_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Explicit softmax attention, the oracle that every other kernel is compared with; see :func:`attention`.

    Half-precision input is computed in float32, the type in which fused kernels accumulate.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    qh, kh, vh = (x.transpose(1, 2).to(dtype) for x in (q, k, v))
    # Scaling q, the smaller operand, saves a pass over the score matrix.
    scores: Tensor = (qh * q.shape[-1] ** -0.5) @ kh.transpose(-1, -2)
    return (scores.softmax(-1) @ vh).transpose(1, 2).to(v.dtype)


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``torch.nn.functional.scaled_dot_product_attention`` with the arguments of :func:`attention`."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


def reference_varlen(q: Tensor, k: Tensor, v: Tensor, q_layout: Packed, k_layout: Packed) -> Tensor:
    """Sample by sample with an explicit softmax: the oracle. A sample without keys gives zeros."""
    queries, k_lengths = q.split(q_layout.lengths_list), k_layout.lengths_list
    return torch.cat(
        [
            reference_attention(sample[None], keys[None], values[None])[0] if len(keys) else sample * 0
            for sample, keys, values in zip(queries, k.split(k_lengths), v.split(k_lengths), strict=True)
        ]
    )


def grouped_varlen(q: Tensor, k: Tensor, v: Tensor, q_layout: Packed, k_layout: Packed) -> Tensor:
    """torch's fused attention, one call for all samples of the same lengths.

    A batch of many short windows becomes a few calls; nothing is padded.
    """
    groups, place = q_layout.once("groups", lambda: _groups(q_layout, k_layout), beside=k_layout)
    return torch.cat([_sdpa(q[rows], k[keys], v[keys], m, n) for (m, n), rows, keys in groups])[place]


def equal_varlen(q: Tensor, k: Tensor, v: Tensor, q_layout: Packed, k_layout: Packed) -> Tensor:
    """torch's fused attention on samples of equal numbers of queries and of keys: a dense batch, without a copy."""
    return _sdpa(q, k, v, q_layout.lengths_list[0], k_layout.lengths_list[0])


def _sdpa(q: Tensor, k: Tensor, v: Tensor, m: int, n: int) -> Tensor:
    """Attention of S concatenated sequences of m queries and n keys each: [S m, H, D]."""
    if n == 0 or m == 0:
        return q * 0
    split = (x.unflatten(0, (-1, size)).transpose(1, 2) for x, size in ((q, m), (k, n), (v, n)))
    return F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(0, 1)


def _groups(q_layout: Packed, k_layout: Packed) -> tuple[list[tuple[tuple[int, int], Tensor, Tensor]], Tensor]:
    """For each pair of lengths ((queries, keys) of a sequence, rows of the queries, rows of the keys); and the place of
    each row of the queries among the concatenated groups."""
    pairs = torch.stack([q_layout.lengths, k_layout.lengths], 1)
    shapes, group = torch.unique(pairs, dim=0, return_inverse=True)
    groups = []
    for number, (m, n) in enumerate(shapes.tolist()):
        members = (group == number).nonzero()[:, 0]
        rows, keys = (
            (layout.cu_seqlens[members, None] + torch.arange(size, device=members.device)).flatten()
            for layout, size in ((q_layout, m), (k_layout, n))
        )
        groups.append(((m, n), rows, keys))
    return groups, torch.cat([rows for _, rows, _ in groups]).argsort()


def check_rows(name: str, x: Tensor, layout: Packed) -> None:
    """Raise FewstepError for anything but a floating-point [T, H, D] on the device of its layout, or on meta."""
    if x.dim() != 3 or len(x) != layout.rows:
        raise invalid(f"shape of {name}", tuple(x.shape), f"[T, H, D] with T = {layout.rows}, as its layout says")
    if x.device != layout.cu_seqlens.device and not x.is_meta:
        raise invalid(f"device of {name}", str(x.device), f"{layout.cu_seqlens.device}, where its layout is")
    if not x.is_floating_point():
        raise invalid(f"type of {name}", str(x.dtype), "a floating-point type")


def _validate_packed(q: Tensor, k: Tensor, v: Tensor, q_layout: Packed, k_layout: Packed) -> None:
    for name, x, layout in (("q", q, q_layout), ("k", k, k_layout), ("v", v, k_layout)):
        check_rows(name, x, layout)
    if q.shape[1:] != k.shape[1:] or k.shape[1:2] != v.shape[1:2]:
        raise invalid("heads of q, k, v", [tuple(x.shape[1:]) for x in (q, k, v)], "the same heads and widths")
    if q_layout.batch_size != k_layout.batch_size:
        raise FewstepError(
            f"q has {q_layout.batch_size} samples and k has {k_layout.batch_size}; accepted: equal numbers"
        )
    if len({q.dtype, k.dtype, v.dtype}) > 1:
        raise invalid("types of q, k, v", [str(x.dtype) for x in (q, k, v)], "one type")
    if len({q.device, k.device, v.device}) > 1:
        raise invalid("devices of q, k, v", [str(x.device) for x in (q, k, v)], "one device")


def _same_dtype(q: Tensor, k: Tensor, v: Tensor, *_: Packed) -> str | None:
    return None if q.dtype == k.dtype == v.dtype else f"dtypes differ ({q.dtype}, {k.dtype}, {v.dtype})"


def _equal(q: Tensor, k: Tensor, v: Tensor, q_layout: Packed, k_layout: Packed) -> str | None:
    equal = all(len(set(layout.lengths_list)) == 1 for layout in (q_layout, k_layout))
    return _same_dtype(q, k, v) if equal else "the lengths of the samples differ"


def _example(draw: Draw) -> tuple[Tensor, ...]:
    return tuple(x[None] for x in draw.heads())


def _packed_example(draw: Draw) -> tuple[Tensor | Packed, ...]:
    layout = draw.layout()
    return (*draw.heads(), layout, layout)


NO_TANGENT = frozenset({"forward", "backward"})
register(Kernel("reference", "attention", reference_attention, ALL, 0, "reference", example=_example))
register(Kernel("sdpa", "attention", sdpa_attention, NO_TANGENT, 10, "torch", _same_dtype))
register(
    Kernel(
        "reference", "varlen_attention", reference_varlen, ALL, 0, "reference",
        example=_packed_example, validate=_validate_packed,
    )
)  # fmt: skip
# The first choice: on an H100 torch uses cuDNN here, which is 1.0 to 3.3 times as fast as the Triton kernel.
register(Kernel("equal-sdpa", "varlen_attention", equal_varlen, NO_TANGENT, 30, "torch", _equal))
register(Kernel("grouped-sdpa", "varlen_attention", grouped_varlen, NO_TANGENT, 10, "torch", _same_dtype))


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v for each head, with the best kernel for this call.

    Args:
        q: ``[B, Lq, H, D]``.
        k: ``[B, Lk, H, D]``.
        v: ``[B, Lk, H, D]``.

    Returns:
        ``[B, Lq, H, D]``.

    Raises:
        FewstepError: if no kernel can serve the call.
    """
    q, k, v = lowered(q, k, v)
    out: Tensor = call("attention", q, k, v)
    return out


def varlen_attention(q: Tensor, k: Tensor, v: Tensor, q_layout: Packed, k_layout: Packed) -> Tensor:
    """softmax(q k^T / sqrt(D)) v for each head and sample, with the best kernel for this call.

    Args:
        q: [T, H, D], packed as ``q_layout``.
        k: [S, H, D], packed as ``k_layout``.
        v: [S, H, D].

    Returns:
        [T, H, D]; zeros for a sample without keys.

    Raises:
        FewstepError: for shapes or layouts that do not fit together, or if no kernel can serve the call.
    """
    q, k, v = lowered(q, k, v)
    out: Tensor = call("varlen_attention", q, k, v, q_layout, k_layout)
    return out
