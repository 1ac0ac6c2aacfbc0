"""Euler paths along a velocity field, with its own times for each sample."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.core.batch import Condition
from fewstep.core.guidance import VelocityField
from fewstep.core.layout import Layout
from fewstep.core.objective import Step
from fewstep.methods.point import UNIFORM


@torch.no_grad()
def average_velocity(
    field: VelocityField, x: Tensor, times: Sequence[Tensor], cond: Condition, layout: Layout
) -> Tensor:
    """(x_t - x_s) / (t - s), with x_s reached from x_t by Euler steps along ``times`` ([B] each, from t down to s)."""
    moved = torch.zeros_like(x)
    for t_B, s_B in pairwise(times):
        moved = moved + layout.expand(t_B - s_B, x) * field(x - moved, t_B, cond, layout)
    return moved / layout.expand(times[0] - times[-1], x)


def drawn_piece(layout: Layout, step: Step, pieces: int) -> Tensor:
    """[B] an index from 0 to ``pieces`` - 1 for each sample, uniform, from the draw "piece"."""
    return (step.times(layout, UNIFORM, "piece") * pieces).long().clamp(max=pieces - 1)
