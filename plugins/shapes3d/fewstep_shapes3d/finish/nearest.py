"""The nearest point on a mesh, and the values there."""

from __future__ import annotations

import torch
from scipy.spatial import cKDTree  # type: ignore[import-untyped,unused-ignore]
from torch import Tensor

from fewstep_shapes3d.representations import Mesh

CANDIDATES = 8  # faces with the nearest centres that are searched: enough if faces are of similar size
CHUNK = 2**14  # points of one pass, few enough for a processor's cache


class Surface:
    """Looks up values at the nearest points of a mesh.

    Args:
        mesh: with faces of similar size, as extraction makes them.
        values: [V, C] of its vertices.
    """

    def __init__(self, mesh: Mesh, values: Tensor) -> None:
        self.values, self.faces = values.float(), mesh.faces
        corners = mesh.vertices.float()[mesh.faces]
        self.corners, self.duals = corners, duals(corners)
        self.tree = cKDTree(corners.mean(1).numpy())

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest points [P, 3] on the mesh to points [P, 3], and the values [P, C] there."""
        parts = [self._nearest(part) for part in points.float().split(CHUNK)]
        places, values = (torch.cat(column) for column in zip(*parts, strict=True))
        return places, values

    def _nearest(self, points: Tensor) -> tuple[Tensor, Tensor]:
        _, near = self.tree.query(points.numpy(), min(CANDIDATES, len(self.faces)))
        face = torch.from_numpy(near).view(len(points), -1)
        corners = self.corners[face]
        weights = within(points[:, None], corners, self.duals[face])
        places = (corners * weights[..., None]).sum(-2)
        best = (places - points[:, None]).square().sum(-1).argmin(1)
        row = torch.arange(len(points))
        values = self.values[self.faces[face[row, best]]]
        return places[row, best], (values * weights[row, best][..., None]).sum(1)


def duals(corners: Tensor) -> Tensor:
    """[..., 2, 3] of triangles [..., 3, 3]: vectors whose dot products with an offset from the first corner are the
    barycentric weights of the second and the third. Zero for a triangle without area."""
    u, v = corners[..., 1, :] - corners[..., 0, :], corners[..., 2, :] - corners[..., 0, :]
    uu, uv, vv = ((one * other).sum(-1, keepdim=True) for one, other in ((u, u), (u, v), (v, v)))
    area = uu * vv - uv * uv
    found = torch.stack([vv * u - uv * v, uu * v - uv * u], -2) / area[..., None]
    return torch.where(area[..., None] > 0, found, 0.0)


def within(points: Tensor, corners: Tensor, dual: Tensor) -> Tensor:
    """Barycentric weights [..., 3] of a point's projection onto a triangle's plane.

    A projection outside the triangle is moved to its edge: negative weights become 0. That is not quite the nearest
    point there, but then a point of another triangle is nearer, or the edges of both are equally near.
    """
    away = points - corners[..., 0, :]
    second, third = (away * dual[..., 0, :]).sum(-1), (away * dual[..., 1, :]).sum(-1)
    weights = torch.stack([1 - second - third, second, third], -1).clamp(min=0)
    return weights / weights.sum(-1, keepdim=True)
