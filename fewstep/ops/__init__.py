"""Ops with more than one implementation, and the choice between them."""

from __future__ import annotations

from fewstep.ops.attention import attention, reference_attention, sdpa_attention
from fewstep.ops.table import Kernel, dispatch, explain, kernels, register
from fewstep.ops.tangents import carries_tangent, in_transform, needs_backward

__all__ = [
    "Kernel",
    "attention",
    "carries_tangent",
    "dispatch",
    "explain",
    "in_transform",
    "kernels",
    "needs_backward",
    "reference_attention",
    "register",
    "sdpa_attention",
]
