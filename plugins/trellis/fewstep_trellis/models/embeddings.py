"""Embeddings of time and of grid positions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_PERIOD = 10000.0


def frequencies(count: int, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """``[count]``: 10000^(-i/count), from 1 downwards."""
    steps = torch.arange(count, dtype=dtype, device=device)
    return torch.exp(-math.log(MAX_PERIOD) / count * steps)


class TimestepEmbedder(nn.Module):
    """``[B]`` times (already multiplied by 1000) to ``[B, C]``: cosines, sines, then a two-layer network.

    Args:
        channels: width C of the embedding.
        frequency_width: number of cosines and sines together.
    """

    def __init__(self, channels: int, frequency_width: int = 256) -> None:
        super().__init__()
        self.frequency_width = frequency_width
        self.mlp = nn.Sequential(nn.Linear(frequency_width, channels), nn.SiLU(), nn.Linear(channels, channels))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.mlp[0].weight.dtype  # type: ignore[return-value]

    def waves(self, t_B: Tensor, dtype: torch.dtype) -> Tensor:
        """``[B, frequency_width]``: ``[cos | sin]`` of t times the frequencies, computed in ``dtype``."""
        angles = t_B.to(dtype)[:, None] * frequencies(self.frequency_width // 2, dtype, t_B.device)
        return torch.cat([angles.cos(), angles.sin()], -1)

    def forward(self, t_B: Tensor) -> Tensor:
        # Never below float32: at t = 1000 a half-precision angle is off by half a radian.
        dtype = torch.promote_types(torch.promote_types(t_B.dtype, self.dtype), torch.float32)
        out: Tensor = self.mlp(self.waves(t_B, dtype).to(self.dtype))
        return out


class JumpEmbedder(nn.Module):
    """``[B]`` lengths t - s of a jump, in [0, 1], to ``[B, C]``, added to the embedding of t: a student's second time.

    It gives 0 for a length of 0, and for every length until it is trained. Its frequencies are low, unlike those of t:
    otherwise the derivative with respect to time, which two-time methods need, would be large.

    Args:
        channels: width C of the embedding.
    """

    WAVES = 8

    def __init__(self, channels: int) -> None:
        super().__init__()
        widen, mix = nn.Linear(1 + self.WAVES, channels, bias=False), nn.Linear(channels, channels, bias=False)
        self.mlp = nn.Sequential(widen, nn.SiLU(), mix)
        nn.init.zeros_(mix.weight)

    def forward(self, length_B: Tensor) -> Tensor:
        angles = math.pi * length_B[:, None] * torch.arange(1, self.WAVES + 1, device=length_B.device)
        features = torch.cat([length_B[:, None], angles.sin()], -1)
        out: Tensor = self.mlp(features.to(next(self.mlp.parameters()).dtype))
        return out


def position_embedding(coords: Tensor, channels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Sines and cosines of integer positions.

    Args:
        coords: ``[N, A]`` positions along A axes.
        channels: width C; each axis gets C // A // 2 frequencies, zeros fill what is left.
        dtype: type to compute in.

    Returns:
        ``[N, C]``: for each axis in turn ``[sin | cos]``, then the zeros.
    """
    count, axes = channels // coords.shape[1] // 2, coords.shape[1]
    angles = coords.to(dtype)[..., None] * frequencies(count, dtype, coords.device)
    waves = torch.cat([angles.sin(), angles.cos()], -1).flatten(1)
    return F.pad(waves, (0, channels - 2 * count * axes))


def grid_coords(size: int, axes: int = 3) -> Tensor:
    """``[size**axes, axes]``: the integer positions of a cubic grid in C order (last axis fastest)."""
    # Made on the CPU: on the meta device, where models are built, these functions import torch's compiler for seconds.
    line = torch.arange(size, device="cpu")
    return torch.stack(torch.meshgrid(*[line] * axes, indexing="ij"), -1).flatten(0, -2)
