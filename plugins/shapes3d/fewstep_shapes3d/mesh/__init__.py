"""Triangle meshes: FlexiCubes from signed distances at the corners of sparse voxels, and work on meshes as arrays."""

from __future__ import annotations

from fewstep_shapes3d.mesh.flexicubes import extract_mesh
from fewstep_shapes3d.mesh.grid import corner_grid

__all__ = ["corner_grid", "extract_mesh"]
