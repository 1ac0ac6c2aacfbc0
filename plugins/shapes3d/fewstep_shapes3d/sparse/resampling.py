"""Resampling of sparse voxels, and group norm with the statistics of each sample."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.core.layout import Packed, add_rows
from fewstep.errors import invalid
from fewstep_shapes3d.sparse.geometry import Pooling


def pool_mean(x: Tensor, pooling: Pooling) -> Tensor:
    """[T, C] to [Tc, C]: the sum over a parent's n children, divided by n + 1.

    The official models also count the zero that the sum starts with; a lone voxel is halved. Their weights rely on it.

    Raises:
        FewstepError: for rows that are not those of the fine layout.
    """
    _check(x, len(pooling.parent))
    total = add_rows(x, pooling.parent, pooling.coarse.rows)
    return total / (pooling.count + 1).to(x.dtype)[:, None]


def unpool(x: Tensor, pooling: Pooling) -> Tensor:
    """[Tc, C] to [T, C]: each fine voxel gets a copy of its parent, in the fine layout's order.

    Raises:
        FewstepError: for rows that are not those of ``pooling.coarse``.
    """
    _check(x, pooling.coarse.rows)
    return x.index_select(0, pooling.parent)


def subdivide(x: Tensor) -> Tensor:
    """[T, C] to [8 T, C]: each voxel's 8 children, directly after each other (``geometry.children``)."""
    return x.repeat_interleave(8, 0)


def sample_group_norm(
    x: Tensor,
    layout: Packed,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Group norm with the statistics of each sample over its voxels and the channels of a group, [T, C] to [T, C].

    Computed in at least float32 and cast back.

    Raises:
        FewstepError: for channels that are not a multiple of ``groups``, or rows that are not the layout's.
    """
    _check(x, layout.rows)
    if x.shape[1] % groups:
        raise invalid("channels", x.shape[1], f"a multiple of groups ({groups})")
    wide = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(1, (groups, -1))
    count = (layout.lengths * wide.shape[2]).clamp(min=1).to(wide.dtype)[:, None]

    def mean(values: Tensor) -> Tensor:
        """[T, G] to each row's own sample's mean [T, G, 1]."""
        total = add_rows(values, layout.index, layout.batch_size)
        own: Tensor = (total / count)[layout.index][..., None]
        return own

    centred = wide - mean(wide.sum(2))
    out = (centred * (mean(centred.square().sum(2)) + eps).rsqrt()).flatten(1)
    out = out if weight is None else out * weight
    shifted: Tensor = out if bias is None else out + bias
    return shifted.to(x.dtype)


def _check(x: Tensor, rows: int) -> None:
    if x.dim() != 2 or len(x) != rows:
        raise invalid("shape of x", tuple(x.shape), f"[T, C] with T = {rows}, as its layout says")
