"""Activation checkpointing, where it can be had."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewstep.ops import carries_tangent, in_transform


def run_block(block: nn.Module, *args: Any, recompute: bool) -> Tensor:
    """``block(*args)``; with ``recompute`` its activations are recomputed in the backward pass.

    Without effect under ``torch.func`` transforms and on tangents, which activation checkpointing does not support.
    """
    if recompute and torch.is_grad_enabled() and not _transformed(block, args):
        return cast(Tensor, checkpoint(block, *args, use_reentrant=False))
    out: Tensor = block(*args)
    return out


def _transformed(block: nn.Module, args: tuple[Any, ...]) -> bool:
    inputs = [a for a in args if isinstance(a, Tensor)]
    return in_transform(*inputs, *block.parameters()) or carries_tangent(*inputs)
