"""A smooth coloured mesh of an occupancy grid, for display.

Constrained surface nets (Gibson 1998, MICCAI), smoothed as by Taubin (1995, SIGGRAPH).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage  # type: ignore[import-untyped,unused-ignore]
from torch import Tensor

from fewstep_shapes3d.representations import Mesh

ROUNDS, PULLS = 10, (0.6, -0.45)  # rounds of smoothing; steps towards the neighbours and back, so that little shrinks
REACH = 0.5  # how far a vertex may move from the middle of its cell, in voxels: thin parts are kept
HEIGHTS = ((0.40, 0.54, 0.76), (0.55, 0.78, 0.76), (0.99, 0.86, 0.62))  # colours from bottom to top
OPEN, DARKEST = (3, 9), 0.45  # widths of the neighbourhoods that shade, in voxels
Array = npt.NDArray[Any]


def voxel_mesh(occupancy: Tensor) -> Mesh:
    """A closed mesh around the occupied voxels of a grid [R, R, R], indexed (x, y, z).

    It passes between the centres of occupied and free voxels, and is coloured by height, darker where many voxels
    around are occupied. An empty grid gives an empty mesh.
    """
    solid = ndimage.binary_fill_holes(np.pad(occupancy.cpu().numpy().astype(bool), 2))
    corners = np.stack([solid[_shifted(corner)] for corner in np.ndindex(2, 2, 2)])
    cells = np.argwhere(corners.any(0) & ~corners.all(0))
    number = np.full(np.array(solid.shape) - 1, -1)
    number[tuple(cells.T)] = np.arange(len(cells))
    quads = np.concatenate([_quads(solid, number, axis) for axis in range(3)])
    if not len(quads):
        return Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64))
    places = _relaxed(cells + 0.5, quads)
    points = (places - 1.5) / len(occupancy) - 0.5  # the centre of voxel 0 is at 2 in the padded grid
    faces = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    attrs = np.concatenate([_colours(solid, places, points[:, 2]), np.zeros_like(points)], 1)
    return Mesh(torch.from_numpy(points).float(), torch.from_numpy(faces), torch.from_numpy(attrs).float())


def _shifted(corner: tuple[int, ...]) -> tuple[slice, ...]:
    """The part of a grid that holds this corner of every cell between voxel centres."""
    return tuple(slice(1, None) if one else slice(None, -1) for one in corner)


def _quads(solid: Array, number: Array, axis: int) -> Array:
    """[Q, 4] the cells around each line of voxel centres along ``axis`` that leaves or enters the solid."""
    ends = [np.take(solid, np.arange(a, solid.shape[axis] - 1 + a), axis) for a in (0, 1)]
    at = np.argwhere(ends[0] != ends[1])
    one, two = (np.eye(3, dtype=int)[(axis + turn) % 3] for turn in (1, 2))
    around = np.stack([number[tuple((at - step).T)] for step in (one + two, two, 0 * one, one)], 1)
    leaves = ends[0][tuple(at.T)]
    found: Array = np.where(leaves[:, None], around, around[:, ::-1])
    return found


def _relaxed(start: Array, quads: Array) -> Array:
    """The vertices smoothed, none moved from its ``start`` by more than ``REACH`` along an axis."""
    ends = np.concatenate([quads[:, [i, (i + 1) % 4]] for i in range(4)])
    ends = np.concatenate([ends, ends[:, ::-1]])
    count = np.bincount(ends[:, 0], minlength=len(start))[:, None]
    places: Array = start.copy()
    for pull in PULLS * ROUNDS:
        sums = np.stack([np.bincount(ends[:, 0], places[ends[:, 1], i], len(start)) for i in range(3)], 1)
        places = np.clip(places + pull * (sums / count - places), start - REACH, start + REACH)
    return places


def _colours(solid: Array, places: Array, height: Array) -> Array:
    """[V, 3] by height, darker by the share of occupied voxels around."""
    share = sum(
        ndimage.map_coordinates(ndimage.uniform_filter(solid.astype(np.float32), width), places.T, order=1)
        for width in OPEN
    )
    shade = np.clip(1.95 - share, DARKEST, 1.0)[:, None]
    stops = np.linspace(-0.5, 0.5, len(HEIGHTS))
    found: Array = np.stack([np.interp(height, stops, channel) for channel in zip(*HEIGHTS, strict=True)], 1) * shade
    return found
