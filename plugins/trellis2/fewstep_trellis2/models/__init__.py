"""The official TRELLIS.2 models in pure PyTorch: same constructors, same state dicts."""

from __future__ import annotations

from fewstep_trellis.models import Rebuildable, SparseStructureDecoder

from fewstep_trellis2.models.slat_flow import SLatFlowModel
from fewstep_trellis2.models.structure_flow import SparseStructureFlowModel
from fewstep_trellis2.vae import AUTOENCODERS

MODELS: dict[str, type[Rebuildable]] = {
    "SparseStructureFlowModel": SparseStructureFlowModel,
    "SparseStructureDecoder": SparseStructureDecoder,  # TRELLIS's own, whose file TRELLIS.2 uses
    "SLatFlowModel": SLatFlowModel,
    "ElasticSLatFlowModel": SLatFlowModel,  # upstream's trades memory for time in training
    **AUTOENCODERS,
}
"""Model classes by the name that official configuration files use. Flows have TRELLIS's names, not its constructors."""

__all__ = ["MODELS", "SLatFlowModel", "SparseStructureFlowModel"]
