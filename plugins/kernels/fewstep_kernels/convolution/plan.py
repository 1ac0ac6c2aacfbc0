"""What the kernels know of a layout: voxels in tiles with similar neighbours, and the pairs of each offset.

Everything is made on the device, in few launches, and kept on the layout. The host waits twice: for the box around the
voxels, and to hear whether two of them are at the same place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from fewstep_shapes3d.sparse.geometry import TABLE_LIMIT, Neighbours, box, neighbours, plain_neighbours, refuse_twice
from fewstep_shapes3d.sparse.grid import Grid
from torch import Tensor
from torch.func import debug_unwrap

from fewstep.core.layout import Packed
from fewstep_kernels.cells import BLOCK, cell_arguments, programs
from fewstep_kernels.convolution import map_jit

STRETCH = 1024  # rows at a time in the search for pairs, one after the other


@dataclass(frozen=True, eq=False)
class Tiles:
    """Voxels in tiles of M rows (int32 all).

    Args:
        order: [N M] row at each place; what lies beyond the last row is 0.
        near: [N, K, M] neighbours at a tile's j-th offset, -1 for none.
        offsets: [N, K] the offsets that any voxel of the tile has; what comes after them, here and in ``near``, is
            not set.
        counts: [N] how many it has.
    """

    order: Tensor
    near: Tensor
    offsets: Tensor
    counts: Tensor


@dataclass(frozen=True, eq=False)
class Pairs:
    """For each offset the pairs (row, its neighbour), in the order of rows.

    Args:
        sources: int32 [K, T] neighbours, the existing ones first; what comes after them is not set.
        targets: int32 [K, T] the rows that have them.
        counts: int32 [K] how many there are.
    """

    sources: Tensor
    targets: Tensor
    counts: Tensor


def tiles(layout: Packed, kernel_size: int, block: int) -> Tiles:
    """The tiles of ``block`` rows."""
    return layout.once(("conv tiles", kernel_size, block), lambda: _tiles(layout, kernel_size, block))


def pairs(layout: Packed, kernel_size: int) -> Pairs:
    """The pairs, for the gradient of the weights."""
    return layout.once(("conv pairs", kernel_size), lambda: _pairs(_table(layout, kernel_size)))


def _table(layout: Packed, kernel_size: int) -> Tensor:
    return debug_unwrap(neighbours(layout, kernel_size, mapped).table)


def mapped(layout: Packed, kernel_size: int) -> Neighbours:
    """The neighbour map in two launches, where the box around the voxels is small enough for a table of its cells."""
    grid = Grid.around(box(layout), kernel_size // 2)
    cells = grid.steps[0] * layout.batch_size
    if not layout.rows or cells > TABLE_LIMIT:
        return plain_neighbours(layout, kernel_size)
    arguments, volume = cell_arguments(layout, grid), kernel_size**3
    device = arguments[0].device
    lookup = torch.full((cells + 1,), -1, dtype=torch.int32, device=device)
    table = torch.empty(volume, layout.rows, dtype=torch.int32, device=device)
    map_jit.put_kernel[(programs(layout),)](*arguments, lookup, BLOCK=BLOCK)
    map_jit.find_kernel[programs(layout), volume](
        *arguments, lookup, table, lookup[cells:], EDGE=kernel_size, BLOCK=BLOCK
    )
    refuse_twice(lookup[cells].item() > 0)
    return Neighbours(kernel_size, table)


def _order(table: Tensor) -> Tensor:
    """Rows sorted by the bits of the neighbours that they have, in Gray order: next to each other differ few bits.

    Of kernels with more than 62 offsets the middle ones decide, where most neighbours are.
    """
    volume, rows = table.shape
    reach = min(volume // 2, 31)
    code = torch.empty(rows, dtype=torch.int64 if reach > 15 else torch.int32, device=table.device)
    map_jit.code_kernel[(-(-rows // BLOCK),)](
        table, code, rows, volume // 2, REACH=reach, WIDE=reach > 15, BLOCK=BLOCK
    )  # fmt: skip
    return code.argsort(stable=True)


def _tiles(layout: Packed, kernel_size: int, block: int) -> Tiles:
    table = _table(layout, kernel_size)
    order = layout.once(("conv order", kernel_size), lambda: _order(table))
    volume, rows = table.shape
    count = -(-rows // block)
    shapes = ((count * block,), (count, volume, block), (count, volume), (count,))
    found = Tiles(*(torch.empty(shape, dtype=torch.int32, device=table.device) for shape in shapes))
    map_jit.tiles_kernel[(count,)](
        table, order, found.order, found.near, found.offsets, found.counts, rows, volume, BLOCK_M=block
    )
    return found


def _pairs(table: Tensor) -> Pairs:
    volume, rows = table.shape
    found = Pairs(torch.empty_like(table), torch.empty_like(table), table.new_empty(volume))
    map_jit.pairs_kernel[(volume,)](table, found.sources, found.targets, found.counts, rows, BLOCK=STRETCH)
    return found
