"""What a 3-D model decodes to: triangle meshes, 3-D Gaussians, radiance fields. Plain dataclasses of tensors."""

from __future__ import annotations

from fewstep_shapes3d.representations.gaussians import Gaussians
from fewstep_shapes3d.representations.mesh import Mesh
from fewstep_shapes3d.representations.radiance import RadianceField
from fewstep_shapes3d.representations.texture import Texture

__all__ = ["Gaussians", "Mesh", "RadianceField", "Texture"]
