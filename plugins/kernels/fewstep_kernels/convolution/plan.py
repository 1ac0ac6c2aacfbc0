"""What the kernels know of a layout: voxels in tiles with similar neighbours, and the pairs of each offset.

Everything is made on the device, without waiting for it, and kept on the layout.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from fewstep_shapes3d.sparse.geometry import neighbours
from torch import Tensor

from fewstep.core.layout import Packed


@dataclass(frozen=True, eq=False)
class Tiles:
    """Voxels in tiles of M rows (int32 all).

    Args:
        order: [N M] row at each place; what lies beyond the last row is 0.
        near: [N, K, M] neighbours at a tile's j-th offset, -1 for none.
        offsets: [N, K] the offsets that any voxel of the tile has, then the others.
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
        sources: int32 [K, T] neighbours, the existing ones first.
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
    return layout.once(("conv pairs", kernel_size), lambda: _pairs(neighbours(layout, kernel_size).table))


def _order(table: Tensor) -> Tensor:
    """Rows sorted by the bits of the neighbours that they have, in Gray order: next to each other differ few bits.

    Of kernels with more than 62 offsets the middle ones decide, where most neighbours are.
    """
    middle, reach = len(table) // 2, min(len(table) // 2, 31)
    found = table[middle - reach : middle + reach + 1] >= 0
    found = torch.cat([found[:reach], found[reach + 1 :]])  # the voxel itself is always there
    bits = 1 << torch.arange(len(found), device=table.device)
    code = (found * bits[:, None]).sum(0)
    for shift in (1, 2, 4, 8, 16, 32):  # the place of a Gray code in its sequence
        code = code ^ (code >> shift)
    return code.argsort(stable=True)


def _tiles(layout: Packed, kernel_size: int, block: int) -> Tiles:
    table = neighbours(layout, kernel_size).table
    order = layout.once(("conv order", kernel_size), lambda: _order(table))
    short = -len(order) % block
    sorted_table = torch.nn.functional.pad(table[:, order], (0, short), value=-1)
    near = sorted_table.unflatten(1, (-1, block)).transpose(0, 1)  # [N, K, M]
    present = (near >= 0).any(2)
    offsets = (~present).to(torch.uint8).argsort(dim=1, stable=True)
    near = near.gather(1, offsets[:, :, None].expand_as(near))
    padded = torch.nn.functional.pad(order, (0, short))
    return Tiles(*(x.to(torch.int32).contiguous() for x in (padded, near, offsets, present.sum(1))))


def _pairs(table: Tensor) -> Pairs:
    absent = table < 0
    targets = absent.to(torch.uint8).argsort(dim=1, stable=True)
    found = (table.gather(1, targets), targets, (~absent).sum(1))
    return Pairs(*(x.to(torch.int32).contiguous() for x in found))
