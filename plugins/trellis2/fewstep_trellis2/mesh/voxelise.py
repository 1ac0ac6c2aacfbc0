"""From a triangle mesh to the flexible dual grid that the shape encoder takes.

A voxel is one of the four around a grid edge that the surface crosses. Its vertex is the point of the voxel with the
least quadratic error: squared distances to the planes of the triangles that cross its edges, and once more of those
that touch it; to the mesh's open edges; and to the mean crossing (Ju et al. 2002, dual contouring, with the terms and
weights of TRELLIS.2). Lengths are in voxels here. Source: o_voxel's mesh_to_flexible_dual_grid, for the definition.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fewstep.core.layout import Packed
from fewstep.errors import FewstepError
from fewstep_trellis2.mesh.crossings import crossings, open_edges
from fewstep_trellis2.mesh.dual_grid import DualGrid
from fewstep_trellis2.mesh.quadric import Floats, Ints, least, to_planes, to_points
from fewstep_trellis2.mesh.touched import touched

OPEN, MEAN = 0.2, 0.01  # weights of open edges and, for each crossing, of the mean crossing


def dual_grid_of(vertices: Tensor, faces: Tensor, resolution: int) -> DualGrid:
    """The dual grid of a surface.

    Args:
        vertices: [V, 3] in [-0.5, 0.5]^3.
        faces: int64 [F, 3].
        resolution: cells on a side.

    Raises:
        FewstepError: the surface crosses no edge of the grid.
    """
    corners = ((vertices.double() + 0.5) * resolution).numpy()[faces.numpy()]
    planes = to_planes(corners)
    where, points, rows, axes = crossings(corners, resolution)
    if not len(where):
        raise FewstepError(
            f"the mesh crosses no edge of a grid of {resolution} cells; accepted: a surface of some size"
        )
    own = _key(where, resolution)
    keys, place = np.unique(own, return_inverse=True)
    place = place.reshape(-1)
    count = np.bincount(place, minlength=len(keys)).astype(float)
    forms = _summed(planes[rows], place, len(keys))
    means = _summed(points, place, len(keys)) / count[:, None]
    intersected = np.zeros((len(keys), 3), bool)
    intersected[place[axes >= 0], axes[axes >= 0]] = True
    for cells, owner in touched(corners, resolution):
        at, found = _found(cells, keys, resolution)
        forms += _summed(planes[owner[found]], at, len(keys))
    cells, lines = open_edges(corners, faces.numpy(), resolution)
    at, found = _found(cells, keys, resolution)
    forms += OPEN * _summed(lines[found], at, len(keys))
    forms += MEAN * count[:, None] * to_points(means)
    coords = np.stack(np.unravel_index(keys, (resolution,) * 3), 1)
    layout = Packed.of_lengths([len(keys)], torch.from_numpy(coords).int())
    vertex = torch.from_numpy(least(forms, coords) - coords).float()
    return DualGrid(layout, vertex, torch.from_numpy(intersected))


def _summed(rows: Floats, place: Ints, count: int) -> Floats:
    """[K, C] to [count, C]: rows with the same ``place`` are summed."""
    return np.stack([np.bincount(place, column, count) for column in rows.T], 1)


def _key(cells: Ints, resolution: int) -> Ints:
    found: Ints = (cells[:, 0] * resolution + cells[:, 1]) * resolution + cells[:, 2]
    return found


def _found(cells: Ints, keys: Ints, resolution: int) -> tuple[Ints, Ints]:
    """For the cells that are among ``keys`` (sorted): their places in ``keys``, and their rows in ``cells``."""
    inside = np.flatnonzero(((cells >= 0) & (cells < resolution)).all(1))
    wanted = _key(cells[inside], resolution)
    at = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    known = keys[at] == wanted
    return at[known], inside[known]
