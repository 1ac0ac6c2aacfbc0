"""The transformer block of the flow models: modulated self attention and network, plain cross attention between."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewstep.core.batch import Condition
from fewstep.core.layout import Packed
from fewstep.ops import gated_residual
from fewstep_trellis.models.attention import CrossAttention, SelfAttention
from fewstep_trellis.models.linear import Linear
from fewstep_trellis.models.norms import WideLayerNorm


class FeedForward(nn.Module):
    """Linear, GELU (tanh form), Linear: ``[..., C]`` to ``[..., C]`` through ``mlp_ratio * C``."""

    def __init__(self, channels: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        hidden = int(channels * mlp_ratio)
        self.mlp = nn.Sequential(Linear(channels, hidden), nn.GELU("tanh"), Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp(x)
        return out


def modulation(channels: int) -> nn.Sequential:
    """``[B, C]`` to ``[B, 6C]``: shift, scale, gate of the attention, then those of the network."""
    return nn.Sequential(nn.SiLU(), Linear(channels, 6 * channels))


def tokens_for_blocks(cond: Tensor | Condition, dtype: torch.dtype) -> Tensor | None:
    """The condition tokens ``[B, M, Cc]`` in this type; None where all of them are known to be 0."""
    if not isinstance(cond, Condition):
        return cond.to(dtype)
    return None if cond.blank or cond.tokens is None else cond.tokens.to(dtype)


class ModulatedCrossBlock(nn.Module):
    """Tokens ``[B, L, C]``, modulation input and condition ``[B, M, Cc]`` to ``[B, L, C]``.

    The condition None stands for tokens that are all 0.

    Args:
        channels: C.
        cond_channels: Cc.
        heads: number of attention heads.
        mlp_ratio: width of the feed-forward network in units of C.
        qk_rms_norm: norm of queries and keys in self attention.
        qk_rms_norm_cross: the same in cross attention.
        share_mod: the modulation ``[B, 6C]`` comes from outside, in place of a time embedding ``[B, C]``.
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
        self.norm1 = WideLayerNorm(channels, eps=1e-6, elementwise_affine=False)
        self.norm2 = WideLayerNorm(channels, eps=1e-6)
        self.norm3 = WideLayerNorm(channels, eps=1e-6, elementwise_affine=False)
        self.self_attn = self.self_attention(channels, heads, qk_rms_norm)
        self.cross_attn = self.cross_attention(channels, cond_channels, heads, qk_rms_norm_cross)
        self.mlp = FeedForward(channels, mlp_ratio)
        if not share_mod:
            self.adaLN_modulation = modulation(channels)

    def forward(self, x: Tensor, mod: Tensor, tokens: Tensor | None) -> Tensor:
        return self.mix(x, self.six(mod), tokens)

    def six(self, mod: Tensor) -> Tensor:
        """``[B, 6C]``, whether it comes from outside or is made here."""
        out: Tensor = mod if self.share_mod else self.adaLN_modulation(mod)
        return out

    def mix(self, x: Tensor, six: Tensor, tokens: Tensor | None, *layout: Packed) -> Tensor:
        """The block itself, with ``six`` ``[B, 6C]`` and, for packed ``x``, its layout."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = six.chunk(6, -1)
        attended = self.self_attn(self.norm1.modulated(x, shift_a, scale_a, *layout), *layout)
        x = gated_residual(x, gate_a, attended, *layout)
        x = x + self.look(x, tokens, *layout)
        made = self.mlp(self.norm3.modulated(x, shift_m, scale_m, *layout))
        return gated_residual(x, gate_m, made, *layout)

    def look(self, x: Tensor, tokens: Tensor | None, *layout: Packed) -> Tensor:
        """Cross attention to the condition, broadcastable against ``x``; a constant for blank tokens."""
        if tokens is None:
            constant: Tensor = self.cross_attn.of_blank(x)
            return constant
        found: Tensor = self.cross_attn(self.norm2(x), tokens, *layout)
        return found
