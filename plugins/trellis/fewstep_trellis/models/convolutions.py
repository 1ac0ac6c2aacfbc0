"""Blocks of the dense convolutional autoencoder. All tensors are ``[B, C, R, R, R]``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from fewstep.errors import unknown
from fewstep_trellis.models.initialise import zero
from fewstep_trellis.models.norms import ChannelLayerNorm, WideGroupNorm


class Conv3d(nn.Conv3d):
    """A convolution that is as fast for one sample as for several.

    On a CPU torch uses oneDNN only for several samples of this size; for one, its own convolution takes five times as
    long. A tensor in oneDNN's layout goes to oneDNN whatever its size, but gradients do not pass back to a dense one.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.dtype != torch.float32 or len(x) != 1 or torch.is_grad_enabled():
            return super().forward(x)
        if not torch.backends.mkldnn.is_available():
            return super().forward(x)
        return super().forward(x.to_mkldnn()).to_dense()


def norm_layer(norm_type: str, channels: int) -> nn.Module:
    """A norm over channels (``"layer"``) or over 32 groups (``"group"``). Raises FewstepError for others."""
    if norm_type == "layer":
        return ChannelLayerNorm(channels)
    if norm_type == "group":
        return WideGroupNorm(32, channels)
    raise unknown("norm_type", norm_type, ["layer", "group"])


class ResBlock3d(nn.Module):
    """Norm, SiLU, convolution, twice, plus the input; the second convolution starts at zero.

    Args:
        channels: channels of the input.
        out_channels: channels of the output; by default as the input.
    """

    def __init__(self, channels: int, out_channels: int | None = None) -> None:
        super().__init__()
        out_channels = out_channels or channels
        # Always layer norms: the official classes hand their norm_type to the output layer only.
        self.norm1 = ChannelLayerNorm(channels)
        self.norm2 = ChannelLayerNorm(out_channels)
        self.conv1 = Conv3d(channels, out_channels, 3, padding=1)
        self.conv2 = Conv3d(out_channels, out_channels, 3, padding=1)
        self.skip_connection = nn.Identity() if out_channels == channels else Conv3d(channels, out_channels, 1)
        zero(self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        out: Tensor = h + self.skip_connection(x)
        return out


class Downsample3d(nn.Module):
    """Half the resolution by a strided convolution."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = Conv3d(channels, out_channels, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


def pixel_shuffle_3d(x: Tensor, scale: int) -> Tensor:
    """``[B, C s^3, R, R, R]`` to ``[B, C, s R, s R, s R]``; channels are packed (C, sx, sy, sz)."""
    return rearrange(x, "b (c sx sy sz) x y z -> b c (x sx) (y sy) (z sz)", sx=scale, sy=scale, sz=scale)


class Upsample3d(nn.Module):
    """Twice the resolution by a convolution and a pixel shuffle."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = Conv3d(channels, 8 * out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return pixel_shuffle_3d(self.conv(x), 2)


def res_blocks(count: int, channels: int) -> list[nn.Module]:
    """``count`` residual blocks of one width."""
    return [ResBlock3d(channels) for _ in range(count)]
