"""A backbone of 300 parameters that can do everything, and batches for it, dense and packed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewstep.config.base import Strict
from fewstep.core.backbone import Backbone, Teacher
from fewstep.core.batch import Batch, Condition
from fewstep.core.guidance import Guidance
from fewstep.core.layout import Dense, Layout, Packed

CHANNELS, COND = 3, 2


class TinyConfig(Strict):
    """The size of the network."""

    width: int = Field(16, ge=1, description="hidden width")


class TinyBackbone(Backbone):
    """Velocity of x [B, N, 3] or [T, 3] under a condition [B, 2]: a smooth function of the row, its sample's mean, both
    times and the condition."""

    Config = TinyConfig
    provides: ClassVar[frozenset[str]] = frozenset(
        {"dense", "packed", "jvp", "two_time", "negative_time", "features", "guidance_input", "policy"}
    )

    def __init__(self, width: int = 16, seed: int = 0) -> None:
        super().__init__()
        inputs = CHANNELS + 3 + COND
        self.width = self.strength_channels = width
        self.inner, self.outer = nn.Linear(inputs, width), nn.Linear(width, CHANNELS)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        if s_B is not None and s_B.dim() == 2:
            return torch.stack([self(x, t_B, cond, layout, s_B=one_B) for one_B in s_B])
        s_B = torch.zeros_like(t_B) if s_B is None else s_B
        tokens = t_B.new_zeros(len(t_B), COND) if cond.tokens is None else cond.tokens
        scalars = [t_B, s_B, layout.mean(x), *tokens.unbind(1)]
        columns = [layout.expand(v_B, x).expand(*x.shape[:-1], 1) for v_B in scalars]
        h = self.inner(torch.cat([x, *columns], -1))
        if (strength := self.strength_of(cond)) is not None:
            h = h + torch.cat([layout.expand(v_B, x) for v_B in strength.unbind(1)], -1)
        velocity: Tensor = self.outer(torch.tanh(h))
        return velocity

    def taps(self) -> list[tuple[nn.Module, int]]:
        return [(self.inner, self.width)]

    @classmethod
    def teacher(cls, config: Any) -> Teacher:
        return Teacher(cls(config.width), Guidance(2.0))

    def save(self, folder: Path, *, half: bool = False) -> None:
        tensors = {k: (v.half() if half else v).contiguous() for k, v in self.state_dict().items()}
        save_file(tensors, folder / "model.safetensors")
        (folder / "model.json").write_text(json.dumps({"width": self.width, "more": len(tensors) > 4}))

    @classmethod
    def load(cls, folder: Path) -> TinyBackbone:
        facts = json.loads((folder / "model.json").read_text())
        backbone = cls(facts["width"])
        if facts["more"]:
            backbone.take_strength()
        backbone.load_state_dict(load_file(folder / "model.safetensors"))
        return backbone


def tiny_batch(
    lengths: tuple[int, ...] = (4, 4, 4), *, packed: bool = False, dtype: torch.dtype = torch.float64, seed: int = 0
) -> Batch:
    """Samples of these lengths for a ``TinyBackbone``, [T, 3] packed or [B, N, 3] dense, with the same values."""
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randn(sum(lengths), CHANNELS, generator=generator, dtype=dtype)
    cond = Condition(torch.randn(len(lengths), COND, generator=generator, dtype=dtype))
    if packed:
        return Batch(x0, Packed.of_lengths(list(lengths)), cond)
    return Batch(x0.reshape(len(lengths), -1, CHANNELS), Dense(len(lengths)), cond)


def near(got: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether two tensors have the same shape and differ by at most ``tolerance`` times the norm of ``expected``."""
    return got.shape == expected.shape and bool((got - expected).norm() <= tolerance * (expected.norm() + 1e-12))
