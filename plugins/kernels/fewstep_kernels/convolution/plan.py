"""The neighbour map as the kernels read it: tiles of voxels with similar neighbours, and the pairs of each offset.

Everything is built on the device, in few launches, and cached on the layout. The host synchronises twice: for the
bounding box of the voxels, and to check that no two of them coincide.
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

STRETCH = 1024  # rows that the search for pairs handles at a time, in sequence


@dataclass(frozen=True, eq=False)
class Tiles:
    """Voxels in N tiles of M rows; all tensors are int32.

    Args:
        order: [N M] the row at each position; 0 beyond the last row.
        near: [N, K, M] the neighbours at a tile's j-th offset, -1 for none.
        offsets: [N, K] the offsets at which any voxel of the tile has a neighbour; entries beyond ``counts``, here and
            in ``near``, are not set.
        counts: [N] the number of these offsets.
    """

    order: Tensor
    near: Tensor
    offsets: Tensor
    counts: Tensor


@dataclass(frozen=True, eq=False)
class Pairs:
    """For each offset, the pairs of a row and its neighbour, in the order of rows; all tensors are int32.

    Args:
        sources: [K, T] the neighbours; entries beyond ``counts`` are not set.
        targets: [K, T] the rows that have them.
        counts: [K] the number of pairs.
    """

    sources: Tensor
    targets: Tensor
    counts: Tensor


def tiles(layout: Packed, kernel_size: int, block: int) -> Tiles:
    """The tiles, of ``block`` rows each."""
    return layout.once(("conv tiles", kernel_size, block), lambda: _tiles(layout, kernel_size, block))


def pairs(layout: Packed, kernel_size: int) -> Pairs:
    """The pairs, for the gradient of the weights."""
    return layout.once(("conv pairs", kernel_size), lambda: _pairs(_table(layout, kernel_size)))


def _table(layout: Packed, kernel_size: int) -> Tensor:
    return debug_unwrap(neighbours(layout, kernel_size, mapped).table)


def mapped(layout: Packed, kernel_size: int) -> Neighbours:
    """The neighbour map in two launches if a table of all cells in the bounding box is small enough, else in torch."""
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
    """Rows sorted by the bit mask of their existing neighbours, in Gray-code order: adjacent masks differ in few bits.

    For kernels with more than 62 offsets only the middle ones count: most neighbours are there.
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
