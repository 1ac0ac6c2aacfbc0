"""Several pictures of one object: both of TRELLIS's ways, as fields that any sampler takes.

Source: pipeline/facts.json of the golden data, multi_image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from fewstep.core.backbone import Backbone, Teacher
from fewstep.core.batch import Condition
from fewstep.core.guidance import VelocityField
from fewstep.core.layout import Layout
from fewstep.errors import invalid, unknown

Mode = Literal["stochastic", "multidiffusion"]
ROUNDING = 1e-6  # of a time that went through float32
MODES = ("stochastic", "multidiffusion")


def several_condition(tokens_NLC: Tensor, batch: int, negative_LC: Tensor | None = None) -> Condition:
    """One condition of N pictures, for ``batch`` samples of the object: tokens [B, N, L, C], negative [B, L, C].

    Args:
        tokens_NLC: of the pictures, as an ``ImageConditioner`` encodes them.
        batch: number of samples B.
        negative_LC: None means zeros.

    Raises:
        FewstepError: tokens that are not three-dimensional, or of no picture.
    """
    if tokens_NLC.ndim != 3 or not len(tokens_NLC):
        raise invalid("pictures of one object", tuple(tokens_NLC.shape), "tokens [N, L, C] of 1 or more pictures")
    negative = torch.zeros_like(tokens_NLC[0]) if negative_LC is None else negative_LC
    return Condition(tokens_NLC.expand(batch, -1, -1, -1), negative.expand(batch, -1, -1))


def several_field(field: VelocityField, mode: Mode, grid: Sequence[float]) -> VelocityField:
    """``field`` on a condition of :func:`several_condition`; a ``Teacher`` keeps its guidance and interval.

    Args:
        field: a teacher or a student.
        mode: "stochastic": in step i the guided prediction uses picture i modulo N. In fewer than N steps it uses the
            mean over every so many pictures from i on, where the reference leaves pictures out. "multidiffusion": the
            conditional prediction is the mean over all pictures; one negative prediction.
        grid: the sampler's times, which say what step a time belongs to.

    Raises:
        FewstepError: for another mode.
    """
    if mode not in MODES:
        raise unknown("way to use several pictures", mode, MODES)
    if isinstance(field, Teacher):
        return Teacher(SeveralImages(field.backbone, mode, grid), field.guidance)
    return SeveralImages(field, mode, grid)


class SeveralImages(Backbone):
    """A field whose condition has an axis of pictures; one without (the negative) goes through as it is."""

    def __init__(self, field: VelocityField, mode: Mode, grid: Sequence[float]) -> None:
        super().__init__()
        self.field, self.mode, self.starts = field, mode, list(grid[:-1])
        self.interpolant = getattr(field, "interpolant", self.interpolant)

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        """Velocity at x [B, ...] or [T, C]; all times t_B [B] belong to one step."""
        if cond.tokens is None or cond.tokens.ndim != 4:
            return self.field(x, t_B, cond, layout, s_B=s_B)
        count = cond.tokens.shape[1]
        steps = 1 if self.mode == "multidiffusion" else len(self.starts)
        chosen = range(self.step(float(t_B[0])) % min(steps, count), count, steps)
        views = (replace(cond, tokens=cond.tokens[:, image], blank=False) for image in chosen)
        return torch.stack([self.field(x, t_B, view, layout, s_B=s_B) for view in views]).mean(0)

    def step(self, t: float) -> int:
        """The step that begins at time t, or else that t lies in; a step's end belongs to the next, 0 to the last."""
        return max(sum(start >= t - ROUNDING for start in self.starts) - 1, 0)
