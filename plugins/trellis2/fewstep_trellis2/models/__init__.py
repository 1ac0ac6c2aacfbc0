"""The official TRELLIS.2 models in pure PyTorch: same constructors, same state dicts."""

from __future__ import annotations

from fewstep_trellis.models import Rebuildable, SparseStructureDecoder

from fewstep_trellis2.vae import AUTOENCODERS

MODELS: dict[str, type[Rebuildable]] = {
    "SparseStructureDecoder": SparseStructureDecoder,  # TRELLIS's own, whose file TRELLIS.2 uses
    **AUTOENCODERS,
}
"""Model classes by the name that official configuration files use. Flows have TRELLIS's names, not its constructors."""

__all__ = ["MODELS"]
