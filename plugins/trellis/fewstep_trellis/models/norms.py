"""Norms that compute in float32 (float64 stays float64) and cast back to the type of their input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep_trellis.models.arguments import at_least_float32


class WideLayerNorm(nn.LayerNorm):
    """Layer norm over the last dimension, ``[..., C]`` to ``[..., C]``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(at_least_float32(x)).to(x.dtype)


class WideGroupNorm(nn.GroupNorm):
    """Group norm, ``[B, C, ...]`` to ``[B, C, ...]``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(at_least_float32(x)).to(x.dtype)


class ChannelLayerNorm(WideLayerNorm):
    """Layer norm over the channels of ``[B, C, ...]``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1).contiguous()


class HeadRMSNorm(nn.Module):
    """Unit length over the head width, times a learned gain per head and channel, times sqrt(width).

    The parameter ``gamma`` is ``[H, D]``; input and output are ``[..., H, D]``.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.scale = width**0.5
        self.gamma = nn.Parameter(torch.ones(heads, width))

    def forward(self, x: Tensor) -> Tensor:
        unit: Tensor = F.normalize(at_least_float32(x), dim=-1)
        out: Tensor = unit * (self.gamma * self.scale)
        return out.to(x.dtype)
