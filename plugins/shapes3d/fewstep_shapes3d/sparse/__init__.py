"""Sparse voxels: packed layouts with integer coordinates, and the ops on their features."""

from __future__ import annotations

from fewstep_shapes3d.sparse.convolution import submanifold_conv
from fewstep_shapes3d.sparse.resampling import pool_mean, sample_group_norm, subdivide, unpool
from fewstep_shapes3d.sparse.windows import windowed_attention

__all__ = ["pool_mean", "sample_group_norm", "subdivide", "submanifold_conv", "unpool", "windowed_attention"]
