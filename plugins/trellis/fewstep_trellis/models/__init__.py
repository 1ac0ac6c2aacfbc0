"""The official TRELLIS models in pure PyTorch: same constructors, same state dicts."""

from __future__ import annotations

from fewstep_trellis.models.arguments import Rebuildable
from fewstep_trellis.models.structure_flow import SparseStructureFlowModel
from fewstep_trellis.models.structure_vae import SparseStructureDecoder, SparseStructureEncoder, occupied_coords

MODELS: dict[str, type[Rebuildable]] = {
    "SparseStructureFlowModel": SparseStructureFlowModel,
    "SparseStructureEncoder": SparseStructureEncoder,
    "SparseStructureDecoder": SparseStructureDecoder,
}
"""Model classes by the name that official configuration files use."""

__all__ = [
    "MODELS",
    "Rebuildable",
    "SparseStructureDecoder",
    "SparseStructureEncoder",
    "SparseStructureFlowModel",
    "occupied_coords",
]
