"""Prepared object sets: read from catalogues, voxelised, rendered, split, and read back."""

from pathlib import Path

SWEETHOME3D = Path(__file__).parent.parent / "assets" / "sweethome3d"  # the set that is shipped
