"""Flexible dual grids: from a triangle mesh, in NumPy, and back to one, in torch."""
