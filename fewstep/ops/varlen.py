"""Attention on packed sequences, and within windows of voxels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.core.layout import Packed
from fewstep.errors import FewstepError, invalid
from fewstep.ops.attention import reference_attention
from fewstep.ops.autocast import lowered
from fewstep.ops.geometry import windows
from fewstep.ops.launches import Launches
from fewstep.ops.opaque import opaque
from fewstep.ops.table import Kernel, dispatch, register

ALL = frozenset({"forward", "backward", "jvp"})


def reference_varlen(q: Tensor, k: Tensor, v: Tensor, q_layout: Packed, k_layout: Packed) -> Tensor:
    """Sample by sample with an explicit softmax: the oracle. A sample without keys gives zeros."""
    parts = []
    for one, keys, values in zip(
        q.split(q_layout.lengths_list), k.split(k_layout.lengths_list), v.split(k_layout.lengths_list), strict=True
    ):
        parts.append(reference_attention(one[None], keys[None], values[None])[0] if len(keys) else one * 0)
    return torch.cat(parts)


def grouped_varlen(q: Tensor, k: Tensor, v: Tensor, q_layout: Packed, k_layout: Packed) -> Tensor:
    """torch's fused attention, one call for all samples of the same lengths.

    A batch of many short windows becomes a few calls; nothing is padded.
    """
    groups = _groups(q_layout, k_layout)
    if len(groups) == 1:
        (m, n), _, _ = groups[0]
        return _sdpa(q, k, v, m, n)
    parts = [_sdpa(q[rows], k[keys], v[keys], m, n) for (m, n), rows, keys in groups]
    place = q_layout.once(("grouped", k_layout), lambda: _inverse(torch.cat([rows for _, rows, _ in groups])))
    return torch.cat(parts)[place]


def _sdpa(q: Tensor, k: Tensor, v: Tensor, m: int, n: int) -> Tensor:
    """Sequences of m queries and n keys one behind the other: [S m, H, D]."""
    if n == 0 or m == 0:
        return q * 0
    split = (x.unflatten(0, (-1, size)).transpose(1, 2) for x, size in ((q, m), (k, n), (v, n)))
    return F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(0, 1)


def _groups(q_layout: Packed, k_layout: Packed) -> list[tuple[tuple[int, int], Tensor, Tensor]]:
    """((queries, keys) of a sequence, rows of the queries, rows of the keys) for each pair of lengths."""
    return q_layout.once(("groups", k_layout), lambda: _make_groups(q_layout, k_layout))


def _make_groups(q_layout: Packed, k_layout: Packed) -> list[tuple[tuple[int, int], Tensor, Tensor]]:
    pairs = torch.stack([q_layout.lengths, k_layout.lengths], 1)
    shapes, group = torch.unique(pairs, dim=0, return_inverse=True)
    found = []
    for number, (m, n) in enumerate(shapes.tolist()):
        members = (group == number).nonzero()[:, 0]
        rows, keys = (
            (layout.cu_seqlens[members, None] + torch.arange(size, device=members.device)).flatten()
            for layout, size in ((q_layout, m), (k_layout, n))
        )
        found.append(((m, n), rows, keys))
    return found


def _inverse(order: Tensor) -> Tensor:
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    return inverse


def _same_dtype(q: Tensor, k: Tensor, v: Tensor, *_: Packed) -> str | None:
    return None if q.dtype == k.dtype == v.dtype else f"dtypes differ ({q.dtype}, {k.dtype}, {v.dtype})"


def like_values(q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor]:
    """An empty result of attention on packed sequences."""
    return (v.new_empty(*q.shape[:2], v.shape[2]),)


varlen_oracle = opaque("varlen_attention_reference", Launches(reference_varlen, like_values))
register(Kernel("reference", "varlen_attention", varlen_oracle, ALL, priority=0, backend="reference"))
register(
    Kernel(
        "grouped-sdpa",
        "varlen_attention",
        opaque("varlen_attention_grouped", Launches(grouped_varlen, like_values, jvp=False)),
        frozenset({"forward", "backward"}),
        priority=10,
        backend="torch",
        check=_same_dtype,
    )
)


def _check(name: str, x: Tensor, layout: Packed) -> None:
    if x.dim() != 3 or len(x) != layout.rows:
        raise invalid(f"shape of {name}", tuple(x.shape), f"[T, H, D] with T = {layout.rows}, as its layout says")
    if x.device != layout.cu_seqlens.device:
        raise invalid(f"device of {name}", str(x.device), f"{layout.cu_seqlens.device}, where its layout is")
    if not x.is_floating_point():
        raise invalid(f"type of {name}", str(x.dtype), "a floating-point type")


def varlen_attention(q: Tensor, k: Tensor, v: Tensor, q_layout: Packed, k_layout: Packed) -> Tensor:
    """softmax(q k^T / sqrt(D)) v for each head and sample, with the best kernel for this call.

    Args:
        q: [T, H, D], packed as ``q_layout``.
        k: [S, H, D], packed as ``k_layout``.
        v: [S, H, D].

    Returns:
        [T, H, D]; zeros for a sample without keys.

    Raises:
        FewstepError: for shapes or layouts that do not fit together, or when no kernel can serve the call.
    """
    q, k, v = lowered(q, k, v)
    for name, x, layout in (("q", q, q_layout), ("k", k, k_layout), ("v", v, k_layout)):
        _check(name, x, layout)
    if q.shape[1:] != k.shape[1:] or k.shape[1:2] != v.shape[1:2]:
        raise invalid("heads of q, k, v", [tuple(x.shape[1:]) for x in (q, k, v)], "the same heads and widths")
    if q_layout.batch_size != k_layout.batch_size:
        raise FewstepError(f"q has {q_layout.batch_size} samples and k {k_layout.batch_size}; accepted: as many")
    if len({q.dtype, k.dtype, v.dtype}) > 1:
        raise invalid("types of q, k, v", [str(x.dtype) for x in (q, k, v)], "one type")
    out: Tensor = dispatch("varlen_attention", q, k, v, q_layout, k_layout).run(q, k, v, q_layout, k_layout)
    return out


def partitioned(q: Tensor, k: Tensor, v: Tensor, layout: Packed, size: int, shift: int) -> Tensor:
    """Window attention as packed attention on rows sorted by window."""
    found = windows(layout, size, shift)
    q, k, v = (x[found.order] for x in (q, k, v))
    return varlen_attention(q, k, v, found.layout, found.layout)[found.inverse]


windowed_oracle = opaque("windowed_attention_reference", Launches(partitioned, like_values))
register(Kernel("reference", "windowed_attention", windowed_oracle, ALL, priority=0, backend="reference"))


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, layout: Packed, size: int, shift: int = 0) -> Tensor:
    """Self attention within cubic windows (see :func:`fewstep.ops.geometry.windows`); no window is masked or wrapped.

    Args:
        q, k, v: [T, H, D], packed as ``layout``, which has coords.
        size: edge of a window in voxels.
        shift: added to all three coordinates.

    Raises:
        FewstepError: as :func:`varlen_attention`, and for a layout without coords.
    """
    q, k, v = lowered(q, k, v)
    for name, x in (("q", q), ("k", k), ("v", v)):
        _check(name, x, layout)
    out: Tensor = dispatch("windowed_attention", q, k, v, layout, size, shift).run(q, k, v, layout, size, shift)
    return out
