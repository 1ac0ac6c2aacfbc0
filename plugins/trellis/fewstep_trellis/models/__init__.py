"""The official TRELLIS models in pure PyTorch: same constructors, same state dicts."""

from __future__ import annotations

from fewstep_trellis.models.arguments import Rebuildable
from fewstep_trellis.models.slat_decoders import SLatRadianceFieldDecoder
from fewstep_trellis.models.slat_encoder import SLatEncoder
from fewstep_trellis.models.slat_flow import SLatFlowModel
from fewstep_trellis.models.slat_gaussians import SLatGaussianDecoder
from fewstep_trellis.models.slat_mesh import SLatMeshDecoder
from fewstep_trellis.models.structure_flow import SparseStructureFlowModel
from fewstep_trellis.models.structure_vae import SparseStructureDecoder, SparseStructureEncoder, occupied_coords

MODELS: dict[str, type[Rebuildable]] = {
    "SparseStructureFlowModel": SparseStructureFlowModel,
    "SparseStructureEncoder": SparseStructureEncoder,
    "SparseStructureDecoder": SparseStructureDecoder,
    "SLatFlowModel": SLatFlowModel,
    "SLatEncoder": SLatEncoder,
    "SLatGaussianDecoder": SLatGaussianDecoder,
    "SLatRadianceFieldDecoder": SLatRadianceFieldDecoder,
    "SLatMeshDecoder": SLatMeshDecoder,
}
"""Model classes by the name that official configuration files use."""

# Upstream's Elastic classes trade memory for time in training; parameters and numbers are those of the plain ones.
MODELS |= {f"Elastic{name}": cls for name, cls in list(MODELS.items()) if name.startswith("SLat")}

__all__ = [
    "MODELS",
    "Rebuildable",
    "SLatEncoder",
    "SLatFlowModel",
    "SLatGaussianDecoder",
    "SLatMeshDecoder",
    "SLatRadianceFieldDecoder",
    "SparseStructureDecoder",
    "SparseStructureEncoder",
    "SparseStructureFlowModel",
    "occupied_coords",
]
