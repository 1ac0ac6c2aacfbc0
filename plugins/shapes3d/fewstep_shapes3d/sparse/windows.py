"""Attention within cubic windows of voxels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.core.layout import Packed
from fewstep.errors import invalid
from fewstep.ops import Kernel, call, register, varlen_attention
from fewstep.ops.attention import check_rows
from fewstep.ops.example import Draw
from fewstep.ops.inputs import lowered
from fewstep.ops.table import ALL
from fewstep_shapes3d.sparse.geometry import box, coords_of, example_layout
from fewstep_shapes3d.sparse.grid import Grid


@dataclass(frozen=True, eq=False)
class Windows:
    """Rows sorted by window: ``x[order]`` is packed as ``layout`` says, ``y[inverse]`` brings it back."""

    order: Tensor
    inverse: Tensor
    layout: Packed


Build = Callable[[Packed, int, int], Windows]


def windows(layout: Packed, size: int, shift: int = 0, build: Build | None = None) -> Windows:
    """Cubic windows: voxel (x, y, z) of a sample is in window (coord + shift) // size. Empty windows do not exist.

    Args:
        layout: with coordinates.
        size: edge of a window in voxels.
        shift: added to all three coordinates.
        build: makes the windows in another way, if the layout does not have them yet.

    Raises:
        FewstepError: for a size below 1, or a layout without coordinates.
    """
    if size < 1:
        raise invalid("window size", size, "a whole number from 1 up")
    return layout.once(("windows", size, shift), lambda: (build or plain_windows)(layout, size, shift))


def plain_windows(layout: Packed, size: int, shift: int) -> Windows:
    """The windows, made with torch's own ops: one sort of the rows by window."""
    cell = (coords_of(layout) + shift).div(size, rounding_mode="floor")
    keys = Grid.coarse(box(layout), size, shift).keys(layout.index, cell)
    ordered, order = keys.sort(stable=True)
    begins = torch.ones(len(order) + 1, dtype=torch.bool, device=order.device)  # a window's first row, or the end
    torch.ne(ordered[1:], ordered[:-1], out=begins[1:-1])
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    return Windows(order, inverse, layout_of(begins))


def layout_of(begins: Tensor) -> Packed:
    """The windows' layout from flags [T + 1]: 1 where a row begins a window, and at the end. Synchronises."""
    bounds = begins.nonzero()[:, 0]
    # A batch without voxels is one empty window.
    return Packed(bounds if len(begins) > 1 else bounds.new_zeros(2))


def partitioned(q: Tensor, k: Tensor, v: Tensor, layout: Packed, size: int, shift: int) -> Tensor:
    """Window attention as packed attention on rows sorted by window."""
    found = windows(layout, size, shift)
    q, k, v = (x[found.order] for x in (q, k, v))
    return varlen_attention(q, k, v, found.layout, found.layout)[found.inverse]


def _example(draw: Draw) -> tuple[Any, ...]:
    return *draw.heads(), example_layout(draw), 2, 0


register(Kernel("reference", "windowed_attention", partitioned, ALL, 0, "reference", example=_example))


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, layout: Packed, size: int, shift: int = 0) -> Tensor:
    """Self attention within cubic windows (see :func:`windows`), without masks and without wrapping around.

    Args:
        q, k, v: [T, H, D], packed as ``layout``, which has coords.
        size: edge of a window in voxels.
        shift: added to all three coordinates.

    Raises:
        FewstepError: as :func:`varlen_attention`, and for a layout without coords.
    """
    q, k, v = lowered(q, k, v)
    for name, x in (("q", q), ("k", k), ("v", v)):
        check_rows(name, x, layout)
    out: Tensor = call("windowed_attention", q, k, v, layout, size, shift)
    return out
