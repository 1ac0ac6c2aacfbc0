"""One jump equals two consecutive jumps: shortcut models and SplitMeanFlow. No derivative is taken.

Both learn the velocity, F(x, t, t) = vT, on a share of the samples, and self-consistency of longer jumps on the others.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor

from fewstep.core.batch import Batch
from fewstep.core.objective import Nets, NetSpec, Step, per
from fewstep.methods.point import UNIFORM
from fewstep_flowmaps.config import FlowMapConfig, ShortcutConfig, SplitConfig
from fewstep_flowmaps.interval import FlowMap, Interval, through

S = TypeVar("S", bound=FlowMapConfig)


class Splitting(FlowMap[S]):
    """|| F - vT ||^2 at s = t, || F - sg(F of two jumps) ||^2 at s < t."""

    def error(self, at: Interval, two_jumps: Tensor) -> Tensor:
        """The squared error, as a loss term."""
        target = torch.where(at.span == 0, at.velocity, two_jumps)
        return per(self.config.reduction, (at.student(at.x_t, at.t_B, at.s_B) - target).square(), at.layout)


class SplitMeanFlow(Splitting[SplitConfig]):
    """(t - s) F_ts = (t - m) F_tm + (m - s) F_ms at a random m (SplitMeanFlow, arXiv 2507.16884).

    arXiv 2505.18825 calls it progressive self-distillation and also tries the midpoint.
    """

    Config = SplitConfig

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        at = self.interval(batch, nets, step)
        share_B = torch.full_like(at.t_B, 0.5)
        if self.config.split == "uniform":
            share_B = step.times(batch.layout, UNIFORM, "split")
        return {"split": self.error(at, through(at.target, at.x_t, at.t_B, at.s_B, share_B, at.layout))}


class Shortcut(Splitting[ShortcutConfig]):
    """F(x_t, t, 2d) = (F(x_t, t, d) + F(x', t - d, d)) / 2, where the last argument is the length of the step and
    x' = x_t - d F(x_t, t, d) (shortcut models, arXiv 2410.12557, equations 4 and 5).

    2d is one of 1, 1/2, ..., 2 / units and t is a multiple of 2d, so that a sampler with 2^k steps evaluates F only
    where it was trained. For the smallest 2d, the two half steps use the velocity F(x, t, 0), as published.
    """

    Config = ShortcutConfig

    def networks(self) -> dict[str, NetSpec]:
        return self.config.networks()

    def ends(self, batch: Batch, step: Step) -> tuple[Tensor, Tensor]:
        layout = batch.layout
        halvings_B = (step.times(layout, UNIFORM, "length") * math.log2(self.config.units)).floor()
        length_B = 0.5**halvings_B
        place_B = (step.times(layout, UNIFORM, "place") / length_B).floor()
        alone_B = step.times(layout, self.config.t, "t")
        apart = self.are_apart(batch, step)
        t_B = torch.where(apart, (place_B + 1) * length_B, alone_B)
        return t_B, torch.where(apart, place_B * length_B, alone_B)

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        at = self.interval(batch, nets, step, self.config.network(nets))

        def average(x: Tensor, t_B: Tensor, s_B: Tensor) -> Tensor:
            shortest = t_B - s_B < 1.5 / self.config.units
            return at.target(x, t_B, torch.where(shortest, t_B, s_B))

        half_B = torch.full_like(at.t_B, 0.5)
        return {"shortcut": self.error(at, through(average, at.x_t, at.t_B, at.s_B, half_B, at.layout))}
