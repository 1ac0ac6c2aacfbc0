"""Procedural furniture: closed, coloured meshes with continuous parameters, as many as wanted, by seed and number."""

from fewstep_shapes3d.furniture.catalogue import KINDS, Piece

__all__ = ["KINDS", "Piece"]
