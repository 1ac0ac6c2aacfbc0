"""Ops with more than one implementation, and the choice between them."""

from __future__ import annotations

from fewstep.ops.attention import attention, reference_attention, sdpa_attention, varlen_attention
from fewstep.ops.calls import call, dispatch, explain
from fewstep.ops.inputs import carries_tangent, in_transform, needs_backward
from fewstep.ops.modulation import gated_residual, modulated_norm
from fewstep.ops.norms import head_rms_norm, qk_rms_norm
from fewstep.ops.table import Kernel, kernels, register

__all__ = [
    "Kernel",
    "attention",
    "call",
    "carries_tangent",
    "dispatch",
    "explain",
    "gated_residual",
    "head_rms_norm",
    "in_transform",
    "kernels",
    "modulated_norm",
    "needs_backward",
    "qk_rms_norm",
    "reference_attention",
    "register",
    "sdpa_attention",
    "varlen_attention",
]
