"""Norms that compute in float32 (float64 stays float64) and cast back to the type of their input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core.layout import Packed
from fewstep.ops import head_rms_norm, modulated_norm
from fewstep.ops.norms import wide


class WideLayerNorm(nn.LayerNorm):
    """Layer norm over the last dimension, ``[..., C]`` to ``[..., C]``."""

    def forward(self, x: Tensor) -> Tensor:
        out = F.layer_norm(wide(x), self.normalized_shape, self.weight, self.bias, self.eps)
        return out if out.dtype is x.dtype else out.to(x.dtype)

    def modulated(self, x: Tensor, shift: Tensor, scale: Tensor, layout: Packed | None = None) -> Tensor:
        """The norm, for one without parameters, times 1 + scale plus shift, both ``[B, C]``."""
        return modulated_norm(x, shift, scale, layout, self.eps)


class WideGroupNorm(nn.GroupNorm):
    """Group norm, ``[B, C, ...]`` to ``[B, C, ...]``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(wide(x)).to(x.dtype)


class ChannelLayerNorm(WideLayerNorm):
    """Layer norm over the channels of ``[B, C, D, H, W]``; the memory format of the input is kept."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x.movedim(1, -1)).movedim(-1, 1)
        return out if x.is_contiguous(memory_format=torch.channels_last_3d) else out.contiguous()


class HeadRMSNorm(nn.Module):
    """Unit length over the head width, times a learned gain per head and channel, times sqrt(width).

    The parameter ``gamma`` is ``[H, D]``; input and output are ``[..., H, D]``.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(heads, width))

    def forward(self, x: Tensor) -> Tensor:
        return head_rms_norm(x, self.gamma)
