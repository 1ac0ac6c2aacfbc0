"""Squared distances as quadratic forms of a point in space, and the minimum of such a form within a voxel.

A form is the upper half of a symmetric 4 x 4 matrix of (x, y, z, 1): 10 numbers, so that forms are added up as rows.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
UPPER = np.triu_indices(4)


def to_planes(corners: Floats) -> Floats:
    """The squared distance to the plane of each triangle [F, 3, 3], as [F, 10]; zeros for a degenerate one."""
    a, b, c = corners.transpose(1, 0, 2)
    normal = np.cross(b - a, c - b)
    size = np.linalg.norm(normal, axis=1, keepdims=True)
    normal = np.divide(normal, size, out=np.zeros_like(normal), where=size > 0)
    plane = np.concatenate([normal, -(normal * a).sum(1, keepdims=True)], 1)
    return _upper(plane[:, :, None] * plane[:, None])


def quadric(matrix: Floats, point: Floats) -> Floats:
    """(x - point)^T matrix (x - point) as [N, 10], for matrices [N, 3, 3] and points [N, 3]."""
    linear = -(matrix @ point[..., None])
    constant = -(point[:, None] @ linear)
    return _upper(np.block([[matrix, linear], [linear.transpose(0, 2, 1), constant]]))


def to_points(points: Floats) -> Floats:
    """The squared distance to each point, [N, 10]."""
    return quadric(np.broadcast_to(np.eye(3), (len(points), 3, 3)), points)


def _upper(form: Floats) -> Floats:
    found: Floats = form[:, UPPER[0], UPPER[1]]
    return found


def least(forms: Floats, low: Ints) -> Floats:
    """The point [N, 3] of each unit cell at ``low`` with the least value of its form [N, 10].

    A convex form's minimum in a box is its minimum with some coordinates, or none, held at the box's sides: all 27
    choices are tried, the free one first.
    """
    matrix = np.zeros((len(forms), 4, 4))
    matrix[:, UPPER[0], UPPER[1]] = matrix[:, UPPER[1], UPPER[0]] = forms
    best, value = np.zeros((len(low), 3)), np.full(len(low), np.inf)
    left = np.arange(len(low))  # cells whose free minimum lies outside
    for sides in product((None, 0, 1), repeat=3):
        form, point = matrix[left], np.zeros((len(left), 3))
        free = [axis for axis in range(3) if sides[axis] is None]
        for axis in set(range(3)) - set(free):
            point[:, axis] = low[left, axis] + float(sides[axis] or 0)
        if free:
            known = form[:, free, 3] + (form[:, free, :3] @ point[..., None])[..., 0]
            point[:, free] = np.linalg.solve(form[:, free][:, :, free], -known[..., None])[..., 0]
        whole = np.concatenate([point, np.ones((len(point), 1))], 1)
        error = (whole[:, None] @ form @ whole[..., None])[:, 0, 0]
        inside = ((point >= low[left]) & (point <= low[left] + 1)).all(1)
        better = inside & (error < value[left])
        best[left[better]], value[left[better]] = point[better], error[better]
        if len(free) == 3:
            left = left[~inside]
    return best
