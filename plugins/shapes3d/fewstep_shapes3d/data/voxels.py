"""Surface voxels of a mesh, as TRELLIS makes the targets of its structure stage."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fewstep.errors import need
from fewstep_shapes3d.data.mesh import Mesh

Grid = npt.NDArray[np.bool_]
_EDGE = 1e-6


def voxelise(mesh: Mesh, resolution: int = 32) -> Grid:
    """The voxels that the surface of a mesh in [-0.5, 0.5]^3 touches: bool [R,R,R], indexed (x, y, z), z up.

    Voxel i covers [i/R, (i+1)/R) - 0.5 on its axis. As in TRELLIS, points on the cube's faces are pulled in by 1e-6;
    otherwise some would fall into a voxel outside the grid.
    """
    o3d = need("open3d")
    vertices = np.clip(mesh.vertices, -0.5 + _EDGE, 0.5 - _EDGE)
    triangles = o3d.geometry.TriangleMesh(
        o3d.utility.Vector3dVector(vertices), o3d.utility.Vector3iVector(mesh.faces.astype(np.int32))
    )
    found = o3d.geometry.VoxelGrid.create_from_triangle_mesh_within_bounds(
        triangles, voxel_size=1 / resolution, min_bound=(-0.5,) * 3, max_bound=(0.5,) * 3
    )
    grid = np.zeros((resolution,) * 3, dtype=bool)
    index = np.array([voxel.grid_index for voxel in found.get_voxels()], dtype=np.int64).reshape(-1, 3)
    index = index[((index >= 0) & (index < resolution)).all(1)]
    grid[tuple(index.T)] = True
    return grid


def pack(grid: Grid) -> npt.NDArray[np.uint8]:
    """Grids [..., R,R,R] as bits, in C order, eight voxels per byte: uint8 [..., R^3/8]."""
    return np.packbits(grid.reshape(*grid.shape[:-3], -1), axis=-1)


def unpack(bits: npt.NDArray[np.uint8], resolution: int) -> Grid:
    """The inverse of :func:`pack`."""
    flat = np.unpackbits(bits, axis=-1, count=resolution**3)
    return flat.reshape(*bits.shape[:-1], resolution, resolution, resolution).astype(bool)
