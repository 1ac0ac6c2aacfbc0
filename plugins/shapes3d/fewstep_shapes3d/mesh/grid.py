"""From the features of sparse cubes to values at the corners of their grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import invalid
from fewstep_shapes3d.mesh.tables import tables

SDF, DEFORM, WEIGHTS, COLOUR = 8, 24, 21, 48
PLAIN, COLOURED = SDF + DEFORM + WEIGHTS, SDF + DEFORM + WEIGHTS + COLOUR


@dataclass(frozen=True, eq=False)
class CornerGrid:
    """Values at those corners of the grid that belong to a given cube.

    Args:
        resolution: R cubes, R + 1 corners along an axis.
        coords: [V, 3] integer positions of the corners, in C order.
        attrs: [V, 4 or 10] signed distance (bias included), deformation 3, raw colour 6; means over the cubes.
        cubes: [N] keys of the given cubes, in C order of the grid.
        weights: [N, 21] beta 12, alpha 8, gamma 1 of each cube, raw.
        row_of: int32 [(R + 1)^3], each corner's row in ``attrs``, -1 for a corner of no given cube.
    """

    resolution: int
    coords: Tensor
    attrs: Tensor
    cubes: Tensor
    weights: Tensor
    row_of: Tensor

    @property
    def positions(self) -> Tensor:
        """[V, 3] deformed positions in [-0.5, 0.5]^3."""
        return corner_positions(self.coords, self.attrs[:, 1:4], self.resolution)


def corner_positions(coords: Tensor, deform: Tensor, resolution: int) -> Tensor:
    """Deformed corners v / R - 0.5 + (1 - 1e-8) / (2 R) tanh(deform): each moves by less than half a cube."""
    return coords.to(deform.dtype) / resolution - 0.5 + (1 - 1e-8) / (2 * resolution) * torch.tanh(deform)


def check_cubes(coords: Tensor, feats: Tensor, resolution: int) -> None:
    """Raise FewstepError unless these are cubes of the grid with the features of a mesh decoder."""
    if coords.dim() != 2 or coords.shape[1] != 3:
        raise invalid("shape of coords", tuple(coords.shape), "[N, 3]")
    if feats.dim() != 2 or len(feats) != len(coords) or feats.shape[1] not in (PLAIN, COLOURED):
        raise invalid("shape of feats", tuple(feats.shape), f"[{len(coords)}, {PLAIN} or {COLOURED}]")
    if len(coords) and (int(coords.min()) < 0 or int(coords.max()) >= resolution):
        raise invalid("coords", f"{int(coords.min())} to {int(coords.max())}", f"0 to {resolution - 1}")


def key(coords: Tensor, size: int) -> Tensor:
    """C-order index in a cubic grid of ``size`` places along an axis."""
    return (coords[..., 0] * size + coords[..., 1]) * size + coords[..., 2]


def place(keys: Tensor, size: int) -> Tensor:
    """The inverse of :func:`key`: [..., 3]."""
    return torch.stack([keys // size**2, keys // size % size, keys % size], -1)


def corner_grid(coords: Tensor, feats: Tensor, resolution: int) -> CornerGrid:
    """Average the cubes' own values at shared corners into one grid.

    Args:
        coords: [N, 3] cubes, each once, in any order.
        feats: [N, 53 or 101] signed distance 8, deformation 8 x 3, weights 21 and, if there, colour 8 x 6.
        resolution: R.

    Raises:
        FewstepError: for other shapes, cubes outside the grid, or a cube twice.
    """
    check_cubes(coords, feats, resolution)
    coords = coords.long()
    corners = coords[:, None] + tables(coords.device).corners
    keys = key(corners, resolution + 1)
    row_of = torch.full(((resolution + 1) ** 3,), -1, dtype=torch.int32, device=coords.device)
    row_of[keys.flatten()] = 0
    present = (row_of >= 0).nonzero()[:, 0]
    row_of[present] = torch.arange(len(present), dtype=torch.int32, device=coords.device)
    rows, values = row_of[keys.flatten()].long(), _corner_values(feats, resolution)
    count = torch.bincount(rows, minlength=len(present)).to(values.dtype)
    total = values.new_zeros(len(present), values.shape[1]).index_add(0, rows, values)
    attrs = total / count[:, None]
    cubes, order = key(coords, resolution).sort()
    if bool((cubes.diff() == 0).any()):
        raise invalid("coords", "a cube twice", "each cube once")
    weights = feats[:, SDF + DEFORM : PLAIN][order]
    return CornerGrid(resolution, place(present, resolution + 1), attrs, cubes, weights, row_of)


def disagreement(grid: CornerGrid, coords: Tensor, feats: Tensor) -> Tensor:
    """The mean squared difference between the cubes' own values at their corners and the grid's means; 0 for none.

    Args:
        grid: made from the other two by :func:`corner_grid`.
        coords: [N, 3].
        feats: [N, 53 or 101].
    """
    keys = key(coords.long()[:, None] + tables(coords.device).corners, grid.resolution + 1)
    values = _corner_values(feats, grid.resolution)
    gap = values - grid.attrs[grid.row_of[keys.flatten()].long()]
    return gap.square().mean() if len(gap) else values.sum()


def _corner_values(feats: Tensor, resolution: int) -> Tensor:
    """[8 N, 4 or 10] each cube's values at its corners; the signed distance is lowered by 1 / R, on a copy."""
    parts = [feats[:, :SDF, None] - 1 / resolution, feats[:, SDF : SDF + DEFORM].unflatten(1, (8, 3))]
    if feats.shape[1] == COLOURED:
        parts.append(feats[:, PLAIN:].unflatten(1, (8, 6)))
    return torch.cat(parts, 2).flatten(0, 1)
