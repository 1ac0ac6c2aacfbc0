"""The surface of a mesh as a signed distance with colours and normals, on lattices around its voxels.

Catalogue meshes are not watertight, so inside is what a flood fill from outside does not reach. The solid is thickened
by :data:`HALF` a lattice step on every side: a sheet without volume then becomes a wall one step thick, which the
lattice can represent. Distances are in voxels of the structure grid, negative inside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fewstep.errors import need
from fewstep_shapes3d.data.materials import Floats
from fewstep_shapes3d.data.mesh import Mesh
from fewstep_shapes3d.data.views import look_up
from fewstep_shapes3d.data.voxels import Grid

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
SUBDIVISION = 4  # cubes along the side of a voxel, as the structured-latent mesh decoder subdivides it
HALF = 0.5  # lattice steps: from this distance on, a 6-connected flood fill does not leak through closed surfaces
CENTRES = np.stack(np.meshgrid(*[[0.25, 0.75]] * 3, indexing="ij"), -1).reshape(-1, 3)  # of a voxel's 8 parts


@dataclass(frozen=True)
class Samples:
    """At P points: ``distance`` [P] in voxels, ``colour`` [P,3] in [0,1] and outward ``normal`` [P,3] of the nearest
    point of the surface, itself ``nearest`` [P,3] in the mesh's coordinates."""

    distance: Floats
    colour: Floats
    normal: Floats
    nearest: Floats


class SurfaceField:
    """The signed distance to a mesh in [-0.5, 0.5]^3 whose surface voxels are ``grid`` [R,R,R]."""

    def __init__(self, mesh: Mesh, grid: Grid) -> None:
        self.mesh, self.o3d, self.resolution = mesh, need("open3d"), len(grid)
        self.scene = self.o3d.t.geometry.RaycastingScene(nthreads=1)
        self.scene.add_triangles(mesh.vertices.astype(np.float32), mesh.faces.astype(np.uint32))
        self.coords: Ints = np.argwhere(grid)
        self.corners = lattice(self.coords)
        self.steps = self.resolution * SUBDIVISION
        self.outside = self._flood()

    def at_corners(self) -> Samples:
        """Samples at ``corners`` [P,3]: the corners of all cubes of all voxels, each once, in C order."""
        return self._sample(self.corners / self.steps - 0.5)

    def at_centres(self) -> Floats:
        """Distances [voxels, 8] at the centres of each voxel's 8 parts, last axis fastest."""
        points = (self.coords[:, None] + CENTRES) / self.resolution - 0.5
        return self._sample(points.reshape(-1, 3)).distance.reshape(-1, 8)

    def colours(self) -> Floats:
        """Mean colour [voxels, 3] of the surface points nearest to a 4^3 lattice in the voxel."""
        parts = (np.indices((SUBDIVISION,) * 3).reshape(3, -1).T + 0.5) / SUBDIVISION
        points = ((self.coords[:, None] + parts) / self.resolution - 0.5).reshape(-1, 3)
        found = self._closest(points)
        gap = np.abs((found["points"].astype(np.float64) + 0.5) * self.resolution - np.repeat(self.coords + 0.5, 64, 0))
        weight = np.where((gap < 0.501).all(1), 1.0, 1e-6).reshape(
            -1, 64, 1
        )  # another voxel's surface only if it has none
        colour = self._colour_at(found).reshape(-1, 64, 3)
        mean: Floats = (weight * colour).sum(1) / weight.sum(1)
        return mean

    def points(self, count: int, seed: int) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
        """Points [count,3] uniform over the area, their colours [count,3], and which the flood from outside reaches."""
        draw = np.random.default_rng(seed)
        a, b, c = self.mesh.vertices[self.mesh.faces].transpose(1, 0, 2)
        cross = np.cross(b - a, c - a)
        area = np.linalg.norm(cross, axis=1)
        face = draw.choice(len(area), count, p=area / area.sum())
        u, v = draw.random((2, count))
        u, v = (np.where(u + v > 1, 1 - part, part) for part in (u, v))
        points = a[face] + u[:, None] * (b - a)[face] + v[:, None] * (c - a)[face]
        step = cross[face] / np.maximum(area[face], 1e-20)[:, None] * 1.5 / self.steps
        seen = self._is_outside(points + step) | self._is_outside(points - step)
        return points, look_up(self.mesh, face, np.stack([u, v], 1))[:, :3], seen

    def _is_outside(self, points: Floats) -> npt.NDArray[np.bool_]:
        at = np.rint((points + 0.5) * self.steps).astype(np.int64).clip(0, self.steps)
        outside: npt.NDArray[np.bool_] = self.outside[tuple(at.T)]
        return outside

    def _flood(self) -> npt.NDArray[np.bool_]:
        """Which lattice corners [n+1]^3 a flood from the border reaches, staying ``HALF`` a step off the surface."""
        from scipy.ndimage import label  # type: ignore[import-untyped]

        points = (self.corners / self.steps - 0.5).astype(np.float32)
        free = np.ones((self.steps + 3,) * 3, dtype=bool)  # one more layer on every side connects the outside
        near = self.scene.compute_distance(self.o3d.core.Tensor(points), nthreads=1).numpy() * self.steps <= HALF
        free[tuple((self.corners[near] + 1).T)] = False
        parts, _ = label(free)
        reached: npt.NDArray[np.bool_] = (parts == parts[0, 0, 0])[1:-1, 1:-1, 1:-1]
        return reached

    def _sample(self, points: Floats) -> Samples:
        found = self._closest(points)
        nearest = found["points"].astype(np.float64)
        away = points - nearest
        length = np.linalg.norm(away, axis=1, keepdims=True)
        # The flood does not come near the surface: there, a place farther out on the point's own side decides. The
        # corner nearest to 1.5 steps out is more than HALF away from a plane of any orientation.
        beyond = nearest + away / np.maximum(length, 1e-9) * 1.5 / self.steps
        probe = np.where(length * self.steps > HALF, points, beyond)
        sign = np.where(self._is_outside(probe), 1.0, -1.0)
        distance = sign * length[:, 0] * self.resolution - HALF / SUBDIVISION
        normal = np.nan_to_num(found["primitive_normals"].astype(np.float64))  # a face without area has none
        normal *= (np.where((normal * away).sum(1) < 0, -1.0, 1.0) * sign)[:, None]
        return Samples(distance, self._colour_at(found), normal, nearest)

    def _closest(self, points: Floats) -> dict[str, npt.NDArray[np.generic]]:
        query = self.o3d.core.Tensor(points.astype(np.float32))
        found = self.scene.compute_closest_points(query, nthreads=1)
        return {key: value.numpy() for key, value in found.items()}

    def _colour_at(self, found: dict[str, npt.NDArray[np.generic]]) -> Floats:
        face, weights = found["primitive_ids"].astype(np.int64), found["primitive_uvs"].astype(np.float64)
        return look_up(self.mesh, face, weights)[:, :3]


def lattice(coords: Ints, subdivision: int = SUBDIVISION) -> Ints:
    """The corners [P,3] of the subdivided voxels ``coords`` [N,3], each once, in C order."""
    size = (int(coords.max(initial=0)) + 1) * subdivision + 1
    offsets = np.indices((subdivision + 1,) * 3).reshape(3, -1).T
    corners = (coords[:, None] * subdivision + offsets).reshape(-1, 3)
    keys = np.unique(np.ravel_multi_index(tuple(corners.T), (size,) * 3))
    return np.stack(np.unravel_index(keys, (size,) * 3), 1)
