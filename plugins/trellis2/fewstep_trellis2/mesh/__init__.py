"""Flexible dual grids to triangle meshes, in plain torch."""
