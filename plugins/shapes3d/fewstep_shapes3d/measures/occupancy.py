"""Measures between occupancy grids, one value per object: volume IoU and the Chamfer distance of voxels."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewstep.errors import invalid


def volume_iou(generated: Tensor, reference: Tensor) -> Tensor:
    """Intersection over union [B] of boolean grids [B, ...]; 1 where both are empty.

    Raises:
        FewstepError: for grids of two shapes, or that are not boolean.
    """
    a, b = _grids(generated, reference)
    both, either = (a & b).flatten(1).sum(1), (a | b).flatten(1).sum(1)
    return torch.where(either == 0, 1.0, both.double() / either.clamp(min=1))


def chamfer(generated: Tensor, reference: Tensor) -> Tensor:
    """Chamfer distance [B] between the occupied cells' centres of boolean grids [B, R, R, R].

    Half the sum of the two mean distances (not squared) to the nearest cell of the other grid, in units of the
    grid's side: 1 / R is one voxel. Two empty grids have distance 0; an empty and an occupied one the cube's
    diagonal, sqrt(3), which no other pair reaches.

    Raises:
        FewstepError: for grids of two shapes, or that are not boolean [B, R, R, R].
    """
    a, b = _grids(generated, reference)
    if a.dim() != 4:
        raise invalid("generated", tuple(a.shape), "grids [B, R, R, R]")
    return torch.tensor([_pair(x.numpy(), y.numpy()) for x, y in zip(a.cpu(), b.cpu(), strict=True)]).double()


def _pair(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    from scipy.spatial import cKDTree  # type: ignore[import-untyped,unused-ignore]  # half a second, when measuring

    # Centres, so never 0: with denormals flushed (torch.set_flush_denormal) cKDTree splits endlessly at 0.
    first, second = ((np.argwhere(grid) + 0.5) / grid.shape[0] for grid in (a, b))
    if not len(first) or not len(second):
        return 0.0 if len(first) == len(second) else math.sqrt(3.0)
    forth, _ = cKDTree(second).query(first)
    back, _ = cKDTree(first).query(second)
    return float(0.5 * (forth.mean() + back.mean()))


def _grids(generated: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    for key, x in (("generated", generated), ("reference", reference)):
        if x.dtype != torch.bool or x.shape != reference.shape:
            raise invalid(key, (str(x.dtype), tuple(x.shape)), f"boolean grids {tuple(reference.shape)}")
    return generated, reference
