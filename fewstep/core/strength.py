"""The guidance strength as an input of a student (LCM, arXiv 2310.04378), which then needs no guidance when sampled."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class StrengthEmbedder(nn.Module):
    """[B] guidance strengths w >= 0, as in (1 + w) c - w u, to [B, C], added to a network's embedding of time.

    Its output is 0 until it is trained, so a network that grows one predicts what it did before.

    Args:
        channels: C.
    """

    WAVES = 4  # low frequencies in log(1 + w), so that the output is smooth between neighbouring strengths

    def __init__(self, channels: int) -> None:
        super().__init__()
        mix = nn.Linear(channels, channels, bias=False)
        self.mlp = nn.Sequential(nn.Linear(1 + 2 * self.WAVES, channels), nn.SiLU(), mix)
        nn.init.zeros_(mix.weight)

    def forward(self, strength_B: Tensor) -> Tensor:
        level_B = torch.log1p(strength_B.to(next(self.parameters())))
        angles = level_B[:, None] * torch.arange(1, 1 + self.WAVES, device=strength_B.device)
        out: Tensor = self.mlp(torch.cat([level_B[:, None], angles.sin(), angles.cos()], -1))
        return out
