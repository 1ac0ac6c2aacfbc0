"""Where in time an objective looks (samplers of t) and where a sampler steps (grids)."""

from __future__ import annotations

from typing import Literal, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fewstep.config.base import Strict

N = TypeVar("N", float, Tensor)


class TimeSampler(Strict):
    """Draws one time per sample. ``logit-normal``: sigmoid of a normal variable (mean > 0 favours the noise end).
    ``grid``: one of ``points`` equally spaced times including both ends, as in consistency distillation (arXiv
    2303.01469)."""

    kind: Literal["uniform", "logit-normal", "grid"] = Field("logit-normal", description="distribution of the time")
    mean: float = Field(1.0, description="mean of the logit (logit-normal only)")
    std: float = Field(1.0, gt=0, description="standard deviation of the logit (logit-normal only)")
    points: int = Field(
        4, ge=2, description="number of times (grid only); an objective of interval D = 1 / points: D, 2 D, ..., 1"
    )

    def draw(self, count: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
        """[count] times in [0, 1], float32; inside (0, 1) unless on a grid."""
        draw = torch.randn if self.kind == "logit-normal" else torch.rand
        return self.squash(draw(count, generator=generator, device=device))

    def squash(self, raw: Tensor) -> Tensor:
        """A raw draw (uniform, or standard normal for ``logit-normal``) to a time."""
        if self.kind == "grid":
            return (raw * self.points).floor().clamp(max=self.points - 1) / (self.points - 1)
        return raw if self.kind == "uniform" else torch.sigmoid(raw * self.std + self.mean)


def rescale(t: N, factor: float) -> N:
    """TRELLIS's ``rescale_t``: r t / (1 + (r - 1) t), more steps near the noise end for r > 1."""
    return factor * t / (1 + (factor - 1) * t)


def step_grid(steps: int, rescale_t: float = 1.0) -> list[float]:
    """Times from 1 to 0 in ``steps`` steps, [steps + 1] Python floats.

    By numpy's linspace, as upstream: torch's differs in the last bit, which at the end of a guidance interval can mean
    one more guided step.
    """
    return [rescale(float(t), rescale_t) for t in np.linspace(1, 0, steps + 1)]
