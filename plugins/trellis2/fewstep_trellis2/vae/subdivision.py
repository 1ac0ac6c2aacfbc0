"""Between a grid of voxels and one of twice the resolution: which children exist, and how features move.

Child k of the voxel at c lies at 2 c + (bit 0, bit 1, bit 2 of k): x runs fastest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from fewstep_shapes3d.sparse.geometry import check_coords, coords_of, pooling
from torch import Tensor

from fewstep.core.layout import Packed
from fewstep.errors import invalid


@dataclass(frozen=True, eq=False)
class Subdivision:
    """The children that a decoder gave its voxels, in the order of (parent, place).

    Args:
        logits: [T, 8], one for each possible child; those above 0 exist.
        layout: of the children, Tc rows.
        parent: [Tc] row of each child's parent.
        place: [Tc] which of its parent's children it is, 0 to 7.
    """

    logits: Tensor
    layout: Packed
    parent: Tensor
    place: Tensor

    @classmethod
    def of_logits(cls, logits: Tensor, layout: Packed) -> Subdivision:
        """The children of the voxels of ``layout`` whose logits [T, 8] are above 0.

        Raises:
            FewstepError: for logits of another shape.
        """
        if logits.shape != (layout.rows, 8):
            raise invalid("shape of the subdivision", tuple(logits.shape), f"[T, 8] with T = {layout.rows}")
        coords = check_coords(layout)
        parent, place = (logits > 0).nonzero().unbind(1)
        corner = torch.stack([place & 1, place >> 1 & 1, place >> 2], 1).to(coords.dtype)
        fine = Packed.of_index(layout.index[parent], 2 * coords[parent] + corner, layout.batch_size)
        return cls(logits, fine, parent, place)

    @classmethod
    def of_voxels(cls, layout: Packed, fine: Packed) -> Subdivision:
        """The children of the voxels of ``layout`` that are among those of ``fine``."""
        coords = coords_of(layout).long()
        side = 2 * (int(coords.max()) + 1)
        corners = torch.arange(8, device=coords.device)
        corner = torch.stack([corners & 1, corners >> 1 & 1, corners >> 2], 1)
        children = layout.index[:, None].long(), *(2 * coords[:, None] + corner).unbind(2)
        there = fine.index.long(), *coords_of(fine).long().unbind(1)
        wanted, known = (((b * side + x) * side + y) * side + z for b, x, y, z in (children, there))
        return cls.of_logits(torch.isin(wanted, known).float() - 0.5, layout)

    def spread(self, x: Tensor) -> Tensor:
        """[T, 8 C] to [Tc, C]: each child takes its group of its parent's 8 groups of channels."""
        out: Tensor = x.unflatten(1, (8, -1))[self.parent, self.place]
        return out


def gathered(x: Tensor, layout: Packed) -> tuple[Tensor, Packed]:
    """[T, C] to [Tp, 8 C] on the grid of half the resolution, parents in the order of (sample, x, y, z).

    A parent's 8 groups of channels are its children's; those of children that do not exist are 0.
    """
    coarser, coords = pooling(layout), coords_of(layout)
    place = ((coords & 1) * coords.new_tensor([1, 2, 4])).sum(1)
    rows = x.new_zeros(8 * coarser.coarse.rows, x.shape[1])
    return rows.index_copy(0, 8 * coarser.parent + place, x).reshape(-1, 8 * x.shape[1]), coarser.coarse


def guide_of(layout: Packed, fine: Packed, steps: int) -> list[Subdivision]:
    """The subdivisions that lead from the voxels of ``layout`` to those of ``fine``, coarsest first.

    Args:
        fine: at 2^steps the resolution, none outside of ``layout``.
    """
    levels = [fine]
    for _ in range(steps - 1):
        levels.append(pooling(levels[-1]).coarse)
    found: list[Subdivision] = []
    for level in reversed(levels):
        found.append(Subdivision.of_voxels(found[-1].layout if found else layout, level))
    return found
