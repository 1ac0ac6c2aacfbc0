"""The cubes that the surface passes through, with their corners' values and their weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep_shapes3d.mesh.grid import CornerGrid, corner_positions, key, place
from fewstep_shapes3d.mesh.tables import tables


@dataclass(frozen=True, eq=False)
class Surface:
    """The cubes that the surface passes through, in C order.

    Args:
        cubes: [S] keys.
        cases: [S], with ambiguous ones resolved.
        corner_keys: [S, 8] keys of the corners in the grid.
        sdf, positions, colours: [S, 8], [S, 8, 3] and [S, 8, 6] (or None), at the corners.
        alpha, beta, gamma: weights [S, 8] of corners, [S, 12] of edges and [S] for splitting quads.
    """

    cubes: Tensor
    cases: Tensor
    corner_keys: Tensor
    sdf: Tensor
    positions: Tensor
    colours: Tensor | None
    alpha: Tensor
    beta: Tensor
    gamma: Tensor


def surface(grid: CornerGrid) -> Surface:
    """The cubes with corners on both sides, and what they hold."""
    size, table = grid.resolution + 1, tables(grid.coords.device)
    inner = grid.coords[grid.attrs[:, 0] < 0]
    cubes = (inner[:, None] - table.corners).reshape(-1, 3)
    cubes = cubes[((cubes >= 0) & (cubes < grid.resolution)).all(1)]
    cubes = torch.unique(key(cubes, grid.resolution))
    corner_keys = key(place(cubes, grid.resolution)[:, None] + table.corners, size)
    rows = grid.row_of[corner_keys].long()
    inside = torch.where(rows >= 0, grid.attrs[rows.clamp(min=0), 0].detach(), 1.0) < 0 if len(rows) else rows < 0
    cases = (inside.long() << torch.arange(8, device=cubes.device)).sum(1)
    kept = cases < 255
    return _filled(grid, cubes[kept], _exchanged(cubes[kept], cases[kept], grid.resolution), corner_keys[kept])


def _exchanged(cubes: Tensor, cases: Tensor, resolution: int) -> Tensor:
    """Cases, complemented where the neighbour across a cube's ambiguous face is ambiguous too: so both agree."""
    outward = tables(cubes.device).outward
    step = outward[cases]
    beyond = place(cubes, resolution) + step
    asked = (step != 0).any(1) & ((beyond >= 0) & (beyond < resolution)).all(1)
    wanted = key(beyond, resolution)
    at = torch.searchsorted(cubes, wanted).clamp(max=max(0, len(cubes) - 1))
    there = asked & (cubes[at] == wanted) & (outward[cases[at]] != 0).any(1) if len(cubes) else asked
    return torch.where(there, 255 - cases, cases)


def _filled(grid: CornerGrid, cubes: Tensor, cases: Tensor, corner_keys: Tensor) -> Surface:
    """Corner values and weights; corners of no given cube are outside by 1 and undeformed, raw weights 0."""
    size, attrs = grid.resolution + 1, grid.attrs
    blank = torch.zeros_like(attrs[:1]) if len(attrs) else attrs.new_zeros(1, attrs.shape[1])
    blank = torch.cat([blank[:, :1] + 1, blank[:, 1:]], 1)
    values = torch.cat([attrs, blank])[torch.where((r := grid.row_of[corner_keys].long()) < 0, len(attrs), r)]
    at = torch.searchsorted(grid.cubes, cubes).clamp(max=max(0, len(grid.cubes) - 1))
    given = grid.cubes[at] == cubes if len(grid.cubes) else at.bool()
    raw = torch.cat([grid.weights, torch.zeros_like(attrs[:1, :1]).expand(-1, 21)])
    raw = raw[torch.where(given, at, len(grid.weights))]
    colours = torch.sigmoid(values[..., 4:]) if attrs.shape[1] > 4 else None
    positions = corner_positions(place(corner_keys, size), values[..., 1:4], grid.resolution)
    beta, alpha = (0.99 * torch.tanh(part) + 1 for part in (raw[:, :12], raw[:, 12:20]))
    gamma = 0.99 * torch.sigmoid(raw[:, 20]) + 0.005
    return Surface(cubes, cases, corner_keys, values[..., 0], positions, colours, alpha, beta, gamma)
