"""The transformer block of the flow models: modulated self attention, plain cross attention, modulated MLP."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core.batch import Condition
from fewstep.core.layout import Packed
from fewstep.ops import gated_residual, modulated_norm
from fewstep.ops.norms import Rotary
from fewstep_trellis.models.attention import CrossAttention, SelfAttention
from fewstep_trellis.models.linear import Linear
from fewstep_trellis.models.norms import WideLayerNorm

Tokens = Tensor | list[Tensor]
"""Condition tokens ``[B, M, Cc]``; packed samples may also have a list of B tensors ``[M, Cc]``, each of its own M."""


class FeedForward(nn.Module):
    """Linear, GELU (tanh form), Linear: ``[..., C]`` to ``[..., C]`` through ``mlp_ratio * C``."""

    def __init__(self, channels: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        hidden = int(channels * mlp_ratio)
        self.mlp = nn.Sequential(Linear(channels, hidden), nn.GELU("tanh"), Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        # Neither the Sequential nor its activation is called: each call costs the host a dozen function calls.
        widen, _, narrow = self.mlp
        out: Tensor = narrow(F.gelu(widen(x), approximate="tanh"))
        return out


def modulation(channels: int) -> nn.Sequential:
    """``[B, C]`` to ``[B, 6C]``: shift, scale and gate of the self attention, then those of the MLP."""
    return nn.Sequential(nn.SiLU(), Linear(channels, 6 * channels))


def modulation_for_blocks(embedding: Tensor, shared: nn.Module | None, dtype: torch.dtype) -> Tensor:
    """What all blocks are given, in ``dtype``: ``[B, 6C]`` of a shared layer, else the activated ``[B, C]``."""
    return F.silu(embedding.to(dtype)) if shared is None else shared(embedding).to(dtype)


def tokens_for_blocks(cond: Tokens | Condition, dtype: torch.dtype) -> Tokens | None:
    """The condition tokens in this type; None where all of them are known to be 0."""
    if isinstance(cond, list):
        return [tokens.to(dtype) for tokens in cond]
    if not isinstance(cond, Condition):
        return cond.to(dtype)
    return None if cond.blank or cond.tokens is None else cond.tokens.to(dtype)


class ModulatedCrossBlock(nn.Module):
    """Tokens ``[B, L, C]``, modulation input and condition ``[B, M, Cc]`` to ``[B, L, C]``.

    The condition None stands for tokens that are all 0. A packed ``x`` ``[T, C]`` comes with its layout. ``rotary`` are
    the cosines and sines of the positions, for queries and keys of the self attention.

    Args:
        channels: C.
        cond_channels: Cc.
        heads: number of attention heads.
        mlp_ratio: width of the feed-forward network in units of C.
        qk_rms_norm: norm of queries and keys in self attention.
        qk_rms_norm_cross: the same in cross attention.
        share_mod: the modulation ``[B, 6C]`` comes from outside, in place of an activated time embedding ``[B, C]``.
    """

    self_attention: ClassVar[Any] = SelfAttention
    cross_attention: ClassVar[Any] = CrossAttention

    def __init__(
        self,
        channels: int,
        cond_channels: int,
        heads: int,
        mlp_ratio: float = 4.0,
        qk_rms_norm: bool = False,
        qk_rms_norm_cross: bool = False,
        share_mod: bool = False,
    ) -> None:
        super().__init__()
        self.share_mod = share_mod
        self.norm2 = WideLayerNorm(channels, eps=1e-6)  # the first and the third have no parameters
        self.self_attn = self.self_attention(channels, heads, qk_rms_norm)
        self.cross_attn = self.cross_attention(channels, cond_channels, heads, qk_rms_norm_cross)
        self.mlp = FeedForward(channels, mlp_ratio)
        if not share_mod:
            self.adaLN_modulation = modulation(channels)

    def own(self, mod: Tensor) -> Tensor:
        """``[B, 6C]``: this block's modulation, from what all blocks are given."""
        if self.share_mod:
            return mod
        _, project = self.adaLN_modulation  # the activation came before, once for all blocks
        out: Tensor = project(mod)
        return out

    def forward(
        self,
        x: Tensor,
        mod: Tensor,
        tokens: Tokens | None,
        layout: Packed | None = None,
        rotary: Rotary | None = None,
    ) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.own(mod).chunk(6, -1)
        where = () if layout is None else (layout,)
        attended = self.self_attn(modulated_norm(x, shift_a, scale_a, layout), *where, rotary)
        x = gated_residual(x, gate_a, attended, layout)
        # Broadcastable against x: a constant for blank tokens.
        x = x + (self.cross_attn.of_blank(x) if tokens is None else self.cross_attn(self.norm2(x), tokens, *where))
        made = self.mlp(modulated_norm(x, shift_m, scale_m, layout))
        return gated_residual(x, gate_m, made, layout)
