"""Where triangles cross the edges of the grid, and which voxels the open edges of a mesh pass, in units of voxels."""

from __future__ import annotations

from itertools import product

import numpy as np

from fewstep_trellis2.mesh.quadric import Floats, Ints, quadric


def crossings(corners: Floats, resolution: int) -> tuple[Ints, Floats, Ints, Ints]:
    """Where triangles cross the edges of the grid, for each of the four voxels around one: the voxel [K, 3], the
    crossing [K, 3], the triangle [K], and the edge's axis [K] for the voxel whose quad it is, -1 for the others."""
    found: list[tuple[Ints, Floats, Ints, Ints]] = []
    for axis in range(3):
        one, two = (axis + 1) % 3, (axis + 2) % 3
        ordered = np.take_along_axis(corners, corners[..., two].argsort(1, kind="stable")[..., None], 1)
        low, middle, high = (ordered[:, i, two] for i in range(3))
        row, triangle = _between(low, high, resolution)
        a, b, c = (ordered[triangle, i] for i in range(3))
        # The line of this row leaves the triangle through its longest edge, a to c, and through one of the others.
        lower = (row <= np.floor(middle)[triangle])[:, None]
        ends = _at(a, c, row, two), _at(np.where(lower, a, b), np.where(lower, b, c), row, two)
        swap = (ends[0][:, one] > ends[1][:, one])[:, None]
        left, right = np.where(swap, ends[1], ends[0]), np.where(swap, ends[0], ends[1])
        column, line = _between(left[:, one], right[:, one], resolution)
        point = _at(left[line], right[line], column, one)
        inside = (point[:, axis] >= 0) & (point[:, axis] < resolution)
        point, column, line = point[inside], column[inside], line[inside]
        for back in product((1, 0), (1, 0)):
            cell = np.empty((len(point), 3), np.int64)
            cell[:, axis] = point[:, axis]
            cell[:, one], cell[:, two] = column - back[0], row[line] - back[1]
            found.append((cell, point, triangle[line], np.full(len(point), axis if back == (1, 1) else -1)))
    cells, points, triangles, axes = (np.concatenate(part) for part in zip(*found, strict=True))
    return cells, points, triangles, axes


def open_edges(corners: Floats, faces: Ints, resolution: int) -> tuple[Ints, Floats]:
    """Voxels [K, 3] that edges of one face pass, and the squared distance to the edge's line [K, 10]."""
    ends = np.sort(np.stack([faces, np.roll(faces, -1, 1)], 2), 2).reshape(-1, 2)
    _, first, count = np.unique(ends, axis=0, return_index=True, return_counts=True)
    alone = first[count == 1]
    start = corners.reshape(-1, 3)[alone]
    end = np.roll(corners, -1, 1).reshape(-1, 3)[alone]
    length = np.linalg.norm(end - start, axis=1)
    start, end, length = (part[length > 1e-6 * resolution] for part in (start, end, length))
    share = [np.zeros(len(start)), np.ones(len(start))]
    owner = [np.arange(len(start))] * 2
    for axis in range(3):
        sides = np.stack([start[:, axis], end[:, axis]])
        value, row = _between(sides.min(0), sides.max(0), resolution)
        share.append((value - start[row, axis]) / (end - start)[row, axis])
        owner.append(row)
    shares, owners = np.concatenate(share), np.concatenate(owner)
    order = np.lexsort((shares, owners))
    shares, owners = shares[order], owners[order]
    same = np.flatnonzero(owners[1:] == owners[:-1])
    row, middle = owners[same], ((shares[1:] + shares[:-1]) / 2)[same, None]
    cells = np.floor(start[row] + middle * (end - start)[row]).astype(np.int64)
    unit = (end - start) / length[:, None]
    across = np.eye(3) - unit[:, :, None] * unit[:, None]
    return cells, quadric(across, start)[row]


def _between(low: Floats, high: Floats, resolution: int) -> tuple[Ints, Ints]:
    """The planes inside the grid, 1 to resolution - 1, in (low, high] of each interval, and the interval of each."""
    first = np.clip(np.floor(low), 0, resolution - 1).astype(np.int64)
    return counted(first + 1, np.clip(np.floor(high), 0, resolution - 1).astype(np.int64) - first)


def counted(start: Ints, count: Ints) -> tuple[Ints, Ints]:
    """``start``, ``start + 1``, ... of each row, ``count`` of them, one row after the other, and the row of each."""
    row = np.repeat(np.arange(len(count)), count)
    return start[row] + np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count), row


def _at(a: Floats, b: Floats, value: Ints, axis: int) -> Floats:
    """The points of the lines a to b with this coordinate; ``a`` if it is constant along the line."""
    length = b[:, axis] - a[:, axis]
    share = np.divide(value - a[:, axis], length, out=np.zeros_like(length), where=length != 0)[:, None]
    return (1 - share) * a + share * b
