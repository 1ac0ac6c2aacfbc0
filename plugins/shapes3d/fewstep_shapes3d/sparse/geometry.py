"""Geometry of sparse voxels: neighbour maps, coarser and finer grids. Indices only, no features.

Each function caches its result on the layout (``Packed.once``), so that a network with any number of layers, sampler
steps and passes computes it once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fewstep.core.layout import Packed, moved
from fewstep.errors import FewstepError, invalid
from fewstep.ops.example import Draw
from fewstep_shapes3d.sparse.grid import Box, Grid, box_of

TABLE_LIMIT = 2**27  # cells of a lookup table (512 MiB of int32); larger boxes are searched instead
AT_ONCE = 2**20  # cells that are looked up in one step
Build = Callable[[Packed, int], "Neighbours"]


@dataclass(frozen=True, eq=False)
class Neighbours:
    """For each offset of a cubic kernel, every voxel's neighbour: ``table`` int32 [K, T], -1 where there is none.

    Offsets are in the order of the kernel's weights: first axis slowest.
    """

    kernel_size: int
    table: Tensor

    @cached_property
    def pairs(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """The pairs (row, row of its neighbour), offset by offset; finding them synchronises with the device."""
        half = len(self.table) // 2
        found: list[tuple[Tensor, Tensor]] = []
        with torch.inference_mode(False):
            for row in self.table[: half + 1].long():
                here = (row >= 0).nonzero()[:, 0]
                found.append((here, row[here]))
        # The map is symmetric: offset k finds q from p where offset K-1-k finds p from q.
        return (*found, *((others, rows) for rows, others in reversed(found[:half])))

    @property
    def occupancy(self) -> float:
        """Share of (voxel, offset) places that hold a neighbour."""
        return float((self.table >= 0).double().mean()) if self.table.numel() else 0.0


@dataclass(frozen=True, eq=False)
class Pooling:
    """From a layout to a coarser one: the latter, each fine row's parent [T], and each parent's child count [Tc].

    It does not reference the fine layout, on which it is cached.
    """

    coarse: Packed
    parent: Tensor
    count: Tensor


def check_coords(layout: Packed) -> Tensor:
    """The layout's coordinates [T, 3], of any integer type. Raises FewstepError where it has none."""
    coords = layout.coords
    if coords is None or coords.dim() != 2 or coords.shape[1] != 3:
        got = None if coords is None else tuple(coords.shape)
        raise invalid("layout.coords", got, "integer coordinates [T, 3] (x, y, z)")
    return coords


def coords_of(layout: Packed) -> Tensor:
    """The layout's coordinates [T, 3] as int64. Raises FewstepError where it has none."""
    coords = check_coords(layout)
    return layout.once("coords64", lambda: coords.to(torch.int64))


def box(layout: Packed) -> Box:
    """The bounding box of all voxels of a layout; finding it synchronises with the device, once.

    Raises:
        FewstepError: for a layout without coordinates.
    """
    coords = check_coords(layout)
    return layout.once("box", lambda: box_of(coords))


def neighbours(layout: Packed, kernel_size: int = 3, build: Build | None = None) -> Neighbours:
    """The neighbour map of a submanifold convolution. Neighbours never cross samples.

    Args:
        layout: with coordinates.
        kernel_size: odd.
        build: makes the map in another way, if the layout does not have it yet.

    Raises:
        FewstepError: for an even kernel, or two rows of one sample at the same place.
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise invalid("kernel_size", kernel_size, "an odd number")
    return layout.once(("neighbours", kernel_size), lambda: (build or plain_neighbours)(layout, kernel_size))


def plain_neighbours(layout: Packed, kernel_size: int) -> Neighbours:
    """The neighbour map, made with torch's own ops."""
    grid = Grid.around(box(layout), kernel_size // 2)
    keys = grid.keys(layout.index, coords_of(layout))
    offsets = moved(torch.tensor(grid.offsets(kernel_size), device="cpu"), keys.device)
    find = _lookup(keys, grid.steps[0] * layout.batch_size)
    table = torch.empty(len(offsets), len(keys), dtype=torch.int32, device=keys.device)
    several = max(1, AT_ONCE // max(1, len(keys)))
    for found, some in zip(table.split(several), offsets.split(several), strict=True):
        found.copy_(find(keys + some[:, None]))
    return Neighbours(kernel_size, table)


def _lookup(keys: Tensor, cells: int) -> Callable[[Tensor], Tensor]:
    """A function from cells to rows, -1 where there is none."""
    if cells <= TABLE_LIMIT:
        table = torch.full((cells,), -1, dtype=torch.int32, device=keys.device)
        rows = torch.arange(len(keys), dtype=torch.int32, device=keys.device)
        table[keys] = rows
        refuse_twice(bool((table[keys] != rows).any()))
        return lambda wanted: table[wanted]
    ordered, order = keys.sort()
    refuse_twice(bool((ordered.diff() == 0).any()))

    def search(wanted: Tensor) -> Tensor:
        place = torch.searchsorted(ordered, wanted).clamp(max=len(ordered) - 1)
        return torch.where(ordered[place] == wanted, order[place], -1)

    return search


def refuse_twice(twice: bool) -> None:
    """Raise FewstepError if ``twice``: two rows of one sample are at the same place."""
    if twice:
        raise FewstepError("layout.coords: two rows of one sample are at the same place; accepted: each voxel once")


def pooling(layout: Packed, factor: int = 2) -> Pooling:
    """The pooling to cells of ``factor``^3 voxels: floor(coord / factor), in the order of (sample, x, y, z).

    Raises:
        FewstepError: for a factor below 1.
    """
    if factor < 1:
        raise invalid("factor", factor, "a whole number from 1 up")
    return layout.once(("pooling", factor), lambda: _pooling(layout, factor))


def _pooling(layout: Packed, factor: int) -> Pooling:
    cell = coords_of(layout).div(factor, rounding_mode="floor")
    # One key per row: torch.unique of whole rows is many times slower.
    keys = Grid.coarse(box(layout), factor).keys(layout.index, cell)
    _, parent, count = torch.unique(keys, return_inverse=True, return_counts=True)
    rows = torch.cat([layout.index[:, None], cell], 1)
    cells = rows.new_empty(len(count), 4)
    cells[parent] = rows
    return Pooling(Packed.of_index(cells[:, 0], cells[:, 1:], layout.batch_size), parent, count)


def children(layout: Packed) -> Packed:
    """The layout of the 8 children of each voxel, directly after each other, at 2 c + offset (last axis fastest)."""
    return layout.once("children", lambda: _children(layout))


def _children(layout: Packed) -> Packed:
    coords = coords_of(layout)
    corner = torch.arange(2, device=coords.device)
    finer = (2 * coords[:, None] + torch.cartesian_prod(corner, corner, corner)).reshape(-1, 3)
    return Packed(8 * layout.cu_seqlens, finer)


def example_layout(draw: Draw) -> Packed:
    """A cube of 27 voxels and one of 8, for the example calls of ``fewstep ops``."""
    line = torch.arange(3, device=draw.device)
    cells = torch.cartesian_prod(line, line, line)
    return draw.layout(torch.cat([cells, cells[(cells < 2).all(1)]]))
