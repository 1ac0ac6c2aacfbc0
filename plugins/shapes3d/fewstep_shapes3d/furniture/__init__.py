"""Procedural furniture: closed, coloured meshes with continuous parameters, any number, by seed and number."""

from fewstep_shapes3d.furniture.catalogue import KINDS, Piece

__all__ = ["KINDS", "Piece"]
