"""What the decoders make: Gaussians, radiance fields, meshes."""

from __future__ import annotations

from fewstep_trellis.representations.gaussians import Gaussians
from fewstep_trellis.representations.mesh import Mesh
from fewstep_trellis.representations.radiance import RadianceField

__all__ = ["Gaussians", "Mesh", "RadianceField"]
