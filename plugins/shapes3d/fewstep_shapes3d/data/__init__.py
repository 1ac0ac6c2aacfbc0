"""Prepared object sets: made from catalogues, mesh files or procedural furniture, and read back."""

from pathlib import Path

SWEETHOME3D = Path(__file__).parent.parent / "assets" / "sweethome3d"  # the set that is shipped
