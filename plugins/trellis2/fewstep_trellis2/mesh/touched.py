"""Which voxels triangles touch, in units of voxels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from fewstep_trellis2.mesh.crossings import counted
from fewstep_trellis2.mesh.quadric import Floats, Ints

AT_ONCE = 1 << 20  # grid columns of one chunk of triangles


def touched(corners: Floats, resolution: int) -> Iterator[tuple[Ints, Ints]]:
    """Voxels [K, 3] that triangles touch, and the triangle [K] of each, in chunks.

    Along the axis that a triangle faces most, its plane passes at most three voxels of a column; these are tested
    against its edges in all three projections (Schwarz and Seidel 2010, "Fast parallel surface and solid
    voxelization").
    """
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 1])
    facing = np.abs(normal).argmax(1)
    low = np.clip(np.floor(corners.min(1)), 0, resolution - 1).astype(np.int64)
    high = np.clip(np.floor(corners.max(1)), 0, resolution - 1).astype(np.int64)
    for axis in range(3):
        one, two = (axis + 1) % 3, (axis + 2) % 3
        chosen = np.flatnonzero((facing == axis) & (normal[:, axis] != 0))
        sizes = (high - low + 1)[chosen]
        columns = sizes[:, one] * sizes[:, two]
        chunk = np.cumsum(columns) // AT_ONCE
        for part in np.split(np.arange(len(chosen)), np.flatnonzero(np.diff(chunk)) + 1):
            place, row = counted(np.zeros(len(part), np.int64), columns[part])
            triangle = chosen[part][row]
            cell = np.empty((len(place), 3), np.int64)
            cell[:, one] = low[triangle, one] + place // sizes[part][row, two]
            cell[:, two] = low[triangle, two] + place % sizes[part][row, two]
            n, a = normal[triangle], corners[triangle, 0]
            flat = cell[:, [one, two]] - a[:, [one, two]]
            slope = n[:, [one, two]]
            reach = -(flat * slope + np.stack([np.minimum(slope, 0), np.maximum(slope, 0)]))  # 2 signs x 2 axes
            ends = a[:, axis] + reach.sum(2) / n[:, axis]
            first = np.clip(np.floor(ends.min(0)), low[triangle, axis], None).astype(np.int64)
            last = np.clip(np.floor(ends.max(0)), None, high[triangle, axis]).astype(np.int64)
            height, row = counted(first, np.maximum(last - first + 1, 0))
            cell, triangle = cell[row], triangle[row]
            cell[:, axis] = height
            inside = _overlap(cell, corners[triangle], normal[triangle])
            yield cell[inside], triangle[inside]


def _overlap(cell: Ints, corners: Floats, normal: Floats) -> npt.NDArray[np.bool_]:
    """Whether unit cells reach inside their triangles in all three projections."""
    inside = np.ones(len(cell), bool)
    for axis in range(3):
        one, two = (axis + 1) % 3, (axis + 2) % 3
        side = np.where(normal[:, axis] < 0, -1.0, 1.0)
        for i in range(3):
            start, end = corners[:, i], corners[:, (i + 1) % 3]
            inward = side[:, None] * np.stack([start[:, two] - end[:, two], end[:, one] - start[:, one]], 1)
            offset = cell[:, [one, two]] - start[:, [one, two]]
            inside &= (inward * offset + np.maximum(inward, 0)).sum(1) >= 0
    return inside
