"""TRELLIS.2's autoencoders of shape and texture on sparse voxels: same constructors, same state dicts."""

from __future__ import annotations

from fewstep_trellis.models import Rebuildable

from fewstep_trellis2.vae.decoder import Decoded, SparseUnetVaeDecoder
from fewstep_trellis2.vae.encoder import FlexiDualGridVaeEncoder, SparseUnetVaeEncoder
from fewstep_trellis2.vae.shape import FlexiDualGridVaeDecoder

AUTOENCODERS: dict[str, type[Rebuildable]] = {
    "FlexiDualGridVaeDecoder": FlexiDualGridVaeDecoder,
    "FlexiDualGridVaeEncoder": FlexiDualGridVaeEncoder,
    "SparseUnetVaeDecoder": SparseUnetVaeDecoder,
    "SparseUnetVaeEncoder": SparseUnetVaeEncoder,
}
"""Their classes by the name that official configuration files use."""

__all__ = [
    "AUTOENCODERS",
    "Decoded",
    "FlexiDualGridVaeDecoder",
    "FlexiDualGridVaeEncoder",
    "SparseUnetVaeDecoder",
    "SparseUnetVaeEncoder",
]
