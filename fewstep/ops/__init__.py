"""Ops with more than one implementation, and the choice between them."""

from __future__ import annotations

from fewstep.ops.attention import attention, reference_attention, sdpa_attention
from fewstep.ops.convolution import submanifold_conv
from fewstep.ops.table import Kernel, dispatch, explain, kernels, register
from fewstep.ops.tangents import carries_tangent, in_transform, needs_backward
from fewstep.ops.varlen import varlen_attention, windowed_attention
from fewstep.ops.voxels import pool_mean, sample_group_norm, subdivide, unpool

__all__ = [
    "Kernel",
    "attention",
    "carries_tangent",
    "dispatch",
    "explain",
    "in_transform",
    "kernels",
    "needs_backward",
    "pool_mean",
    "reference_attention",
    "register",
    "sample_group_norm",
    "sdpa_attention",
    "subdivide",
    "submanifold_conv",
    "unpool",
    "varlen_attention",
    "windowed_attention",
]
