"""Ops with more than one implementation, and the choice between them."""

from __future__ import annotations

from fewstep.ops.attention import attention, reference_attention, sdpa_attention
from fewstep.ops.convolution import submanifold_conv
from fewstep.ops.mlp import linear_gelu
from fewstep.ops.modulation import gated_residual, modulated_norm
from fewstep.ops.norms import head_rms_norm, qk_rms_norm
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
    "gated_residual",
    "head_rms_norm",
    "in_transform",
    "kernels",
    "linear_gelu",
    "modulated_norm",
    "needs_backward",
    "pool_mean",
    "qk_rms_norm",
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
