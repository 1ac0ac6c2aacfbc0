"""Results as files: Gaussians as .ply, meshes as .glb, arrays as .npz, previews as .png."""

from __future__ import annotations

from fewstep_shapes3d.export.arrays import write_npz
from fewstep_shapes3d.export.camera import Camera
from fewstep_shapes3d.export.files import write_whole
from fewstep_shapes3d.export.glb import write_glb
from fewstep_shapes3d.export.ply import read_ply, write_ply
from fewstep_shapes3d.export.preview import picture, turntable, write_preview
from fewstep_shapes3d.export.raster import render_mesh
from fewstep_shapes3d.export.record import read_record
from fewstep_shapes3d.export.splat import render_gaussians

__all__ = [
    "Camera",
    "picture",
    "read_ply",
    "read_record",
    "render_gaussians",
    "render_mesh",
    "turntable",
    "write_glb",
    "write_npz",
    "write_ply",
    "write_preview",
    "write_whole",
]
