"""Activation checkpointing, where torch supports it."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from fewstep.ops import carries_tangent, in_transform

SELECTIVE = "selective"
ATTENTION = [  # every backend of torch's fused attention
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
]


def run_block(block: nn.Module, *args: Any, recompute: bool | str) -> Tensor:
    """``block(*args)``; with ``recompute`` its activations are recomputed in the backward pass.

    "selective" keeps the results of torch's fused attention, which take the most time and little memory. There is no
    effect under ``torch.func`` transforms and on tangents, which activation checkpointing does not support.
    """
    if recompute and torch.is_grad_enabled() and not _transformed(block, args):
        kept = partial(create_selective_checkpoint_contexts, ATTENTION)
        more: dict[str, Any] = {"context_fn": kept} if recompute == SELECTIVE else {}
        return cast(Tensor, checkpoint(block, *args, use_reentrant=False, **more))
    out: Tensor = block(*args)
    return out


def _transformed(block: nn.Module, args: tuple[Any, ...]) -> bool:
    inputs = [a for a in args if isinstance(a, Tensor)]
    return in_transform(*inputs, *block.parameters()) or carries_tangent(*inputs)
