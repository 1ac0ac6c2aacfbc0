"""Several pictures of one object: TRELLIS's two modes, as velocity fields for any sampler.

Source: pipeline/facts.json of the golden data, multi_image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fewstep.core.batch import Condition
from fewstep.core.guidance import UNGUIDED, Guidance, VelocityField, both
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


def several_field(
    field: VelocityField, mode: Mode, grid: Sequence[float], guidance: Guidance = UNGUIDED
) -> VelocityField:
    """The guided velocity of ``field`` on a condition of :func:`several_condition`.

    Args:
        field: a flow or a student, without guidance.
        mode: "stochastic": the conditional prediction of step i uses picture i modulo N; in S < N steps it is the mean
            over pictures i, i + S, i + 2S, ..., where the reference never uses those from S on. "multidiffusion": it is
            the mean over all pictures. The negative prediction is the same for all pictures and made once.
        grid: the sampler's times, which say what step a time belongs to.
        guidance: between the two predictions.

    Raises:
        FewstepError: for another mode.
    """
    if mode not in MODES:
        raise unknown("way to use several pictures", mode, MODES)
    return SeveralImages(field, mode, grid[:-1], guidance)


@dataclass(frozen=True)
class SeveralImages:
    """See :func:`several_field`; ``starts`` are the times at which steps begin."""

    field: VelocityField
    mode: Mode
    starts: Sequence[float]
    guidance: Guidance

    def __call__(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        """Velocity at x [B, ...] or [T, C] under tokens [B, N, L, C]; all times t_B [B] belong to one step."""
        assert cond.tokens is not None
        count = cond.tokens.shape[1]
        steps = 1 if self.mode == "multidiffusion" else len(self.starts)
        chosen = range(self.step(float(t_B[0])) % min(steps, count), count, steps)
        first, *others = (replace(cond, tokens=cond.tokens[:, image], blank=False) for image in chosen)
        negative = None
        if self.guidance.idle(t_B):
            positive = self.field(x, t_B, first, layout, s_B=s_B)
        else:
            positive, negative = both(self.field, x, t_B, first, layout, s_B)
        rest = [self.field(x, t_B, view, layout, s_B=s_B) for view in others]
        mean = torch.stack([positive, *rest]).mean(0)
        if negative is None:
            return mean
        return self.guidance.combined(mean, negative, x, t_B, layout, getattr(self.field, "interpolant", None))

    def step(self, t: float) -> int:
        """The step that time t falls into; a boundary belongs to the step that starts there, 0 to the last."""
        return max(sum(start >= t - ROUNDING for start in self.starts) - 1, 0)
