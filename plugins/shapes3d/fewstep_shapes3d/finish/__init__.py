"""Meshes for other programs: repaired, with fewer faces, and with a texture in place of vertex colours."""

from __future__ import annotations

from fewstep_shapes3d.finish.options import Finish

__all__ = ["Finish"]
