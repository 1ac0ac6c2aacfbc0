"""Activation checkpointing, where it can be had."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewstep.ops import carries_tangent, in_transform


def run_block(block: nn.Module, *args: Any, recompute: bool) -> Tensor:
    """``block(*args)``; with ``recompute`` its activations are made anew in the backward pass.

    Without effect under ``torch.func`` transforms and on tangents, which activation checkpointing does not support.
    """
    tensors = [a for a in args if isinstance(a, Tensor)]
    if recompute and torch.is_grad_enabled() and not (in_transform() or carries_tangent(*tensors)):
        return cast(Tensor, checkpoint(block, *args, use_reentrant=False))
    return cast(Tensor, block(*args))
