"""Keys and values of a condition, and what is known of them without computing."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn

from fewstep.core.batch import Condition
from fewstep.ops import in_transform
from fewstep.ops.economy import on

Pair = tuple[Tensor, Tensor]


def as_condition(cond: Tensor | Condition) -> Condition:
    """Plain tokens [B, L, Cc] as a condition of which nothing is known."""
    return cond if isinstance(cond, Condition) else Condition(cond)


def tokens_of(cond: Condition) -> Tensor:
    """The tokens of a condition that must have some."""
    assert cond.tokens is not None
    return cond.tokens


def keys_values(layer: nn.Module, weights: nn.Module, cond: Condition, build: Callable[[Tensor], Pair]) -> Pair:
    """``build(tokens)``, made once for all passes with the same weights that record no graph.

    Args:
        layer: whose keys and values they are.
        weights: the projection that makes them, whose versions tell a stale pair.
        cond: copies of one batch share that batch's pair.
        build: from tokens [B, L, Cc] to keys and values whose first axis is of samples, or of samples' tokens.
    """
    if cond.base is not None and on("keys"):
        base, copies = cond.base
        keys, values = keys_values(layer, weights, base, build)
        return tuple(x.repeat(copies, *[1] * (x.dim() - 1)) for x in (keys, values))  # type: ignore[return-value]
    tokens = tokens_of(cond)
    if not on("keys") or _recorded(weights, tokens):
        return build(tokens)
    return cond.once(layer, _version(weights, tokens), lambda: build(tokens))


def _recorded(weights: nn.Module, tokens: Tensor) -> bool:
    """Whether a later derivative may ask for what is computed now, or it cannot be kept."""
    if torch.compiler.is_compiling() or in_transform():
        return True
    if tokens.is_inference() or torch.is_inference_mode_enabled():
        return True
    wanted = tokens.requires_grad or any(p.requires_grad for p in weights.parameters())
    return torch.is_grad_enabled() and wanted


def _version(weights: nn.Module, tokens: Tensor) -> Hashable:
    """Changes with each optimiser step, load or move of the weights, and with autocast."""
    autocast = torch.is_autocast_enabled(tokens.device.type) and torch.get_autocast_dtype(tokens.device.type)
    return (autocast, *((p.data_ptr(), p._version, p.dtype) for p in weights.parameters()))
