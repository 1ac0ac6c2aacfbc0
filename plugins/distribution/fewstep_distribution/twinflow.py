"""TwinFlow (arXiv 2512.05150): a flow map that also learns, at negative times, the velocity of its own samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, cast

import torch
from torch import Tensor

from fewstep.core.batch import Batch
from fewstep.core.contract import Contract
from fewstep.core.layout import Dense
from fewstep.core.objective import Nets, Objective, Step
from fewstep.methods.distance import distance
from fewstep.methods.point import UNIFORM, Look, dropped
from fewstep.methods.residual import Derivative
from fewstep_distribution.config import TwinFlowConfig

Average = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x, t_B, s_B) -> F, with condition and layout bound
ONE, NEAR, ANY, FAKE = range(4)  # the four parts of a batch
FLOOR = 1e-6  # added to a sample's mean squared error before the power is taken; the square of the published 1e-3


class TwinFlow(Objective[TwinFlowConfig]):
    """A student F(x, t, s) with times in [-1, 1]: at t > 0 the average velocity from t to s, at t < 0 the velocity of
    the student's own samples ("fakes") at -t. Each quarter of a batch learns one thing:

        one-step     t = 1 and s = 0,
        near         s from (1 - near) t to t,
        any          s from 0 to t: all three learn the flow map, by the residual d/dt [(t - s) F] - v,
        fake         F(x_t, -t, -t) learns eps - x with x_t between fakes x = z - F(z, 1, 0) and eps.

    The one-step part is also moved by the difference of the two velocities at its own noisy fakes: the gradient with
    respect to F(z, 1, 0) is F(x_t, -t, -t) - F(x_t, t, t). Where the former is exact, this is the gradient of
    KL(fakes || F's own flow). Residual and difference are clipped to ``clip`` elementwise, and each sample's squared
    error is divided by its mean square to the power ``power``. v is the guided teacher's velocity; the paper uses the
    data's, with the student's own guidance, and needs no teacher.

    The residual is the published first-order one, [(t - s) F(x_t, t, s) - (t - D - s) F(x_t - D v, t - D, s)] / D - v,
    and F - v where t - s < D.
    Left out are the published code's second-order variant, its EMA of the student there, and its weight by t - s.
    Every evaluation runs on the whole batch; masks select the parts.
    """

    Config = TwinFlowConfig
    needs: ClassVar[frozenset[str]] = frozenset({"two_time", "negative_time"})
    sampler = "jump"

    def contract(self) -> Contract:
        return Contract(sampler=self.sampler, rescale_t=self.config.rescale_t, two_time=True)

    def look(self, name: str = "main") -> Look:
        """The settings at noisy samples; a ``name`` other than "main" has its own draws of time and noise."""
        config = self.config
        own = None if name == "main" else config.t
        return Look(config, Derivative("discrete", config.interval), config.guidance, name=name, t=own)

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        layout, config = batch.layout, self.config
        # A random offset gives each part a quarter of the samples on average, however small the batch.
        order_B = torch.arange(layout.batch_size, device=batch.x0.device)
        part_B = (order_B + (4 * step.times(Dense(1), UNIFORM, "part")).long()) % 4
        one, fake = (layout.expand((part_B == part).to(batch.x0.dtype), batch.x0) > 0 for part in (ONE, FAKE))
        t_B, s_B = self.times(part_B, batch, step)
        seen = dropped(batch, step, config.p_uncond, "drop/main")

        def student(x: Tensor, t_B: Tensor, s_B: Tensor) -> Tensor:
            return cast(Tensor, nets.student(x, t_B, seen, layout, s_B=s_B)).to(x.dtype)

        with torch.no_grad():
            start, ones_B = step.randn_like(batch.x0, "noise_fake"), torch.ones_like(t_B)
            x0 = torch.where(fake, start - student(start, ones_B, 0 * ones_B), batch.x0)
        at, noise, twin_B = replace(batch, x0=x0), step.randn_like(x0, "noise"), (part_B == FAKE).to(t_B)
        x_t, sign_B = step.interpolant.interpolate(x0, noise, t_B, layout), 1 - 2 * twin_B
        with torch.no_grad():
            velocity = self.look().velocity(at, noise, x_t, t_B, nets, step)

        def towards_s(x: Tensor, t_B: Tensor) -> Tensor:
            return student(x, sign_B * t_B, sign_B * s_B)

        knobs = self.look().knobs_at(step)
        residual = knobs.residual(towards_s, x_t, t_B, velocity, layout, step)
        average, span_B = residual.value, (t_B - s_B - knobs.interval_at(t_B).to(t_B)).clamp(min=0)
        with torch.no_grad():
            error = residual.tangent(layout.expand(span_B, average)).clamp(-config.clip, config.clip)
            error = torch.where(fake, average - step.interpolant.velocity(x0, noise), error)
            gap = torch.where(one, self.gap(student, replace(batch, x0=x_t - average), step), 0.0)

        def descent(gradient: Tensor, weight_B: Tensor) -> Tensor:
            """A loss term with this gradient, normalised by ``power``, with respect to the average velocity."""
            weight_B = weight_B * (layout.mean(gradient.square()) + FLOOR) ** -config.power
            return distance(average - (average - gradient).detach(), weight_B, layout, None, config.reduction)

        terms = {"flow": descent(error, 1 - twin_B), "twin": descent(error, twin_B)}
        # 4: the weight refers to the mean over the quarter.
        return terms | {"gap": descent(gap, 4 * config.weight * ones_B)}

    def times(self, part_B: Tensor, batch: Batch, step: Step) -> tuple[Tensor, Tensor]:
        """[B] t > 0 and s <= t; for the fake part the student takes them with the opposite sign."""
        t_B, share_B = self.look().times(batch, step), step.times(batch.layout, UNIFORM, "s")
        t_B = torch.where(part_B == ONE, 1.0, t_B)
        share_B = torch.where(part_B == NEAR, self.config.near * share_B, share_B)
        share_B = torch.where(part_B == ONE, 1.0, torch.where(part_B == FAKE, 0.0, share_B))
        return t_B, t_B - share_B * t_B

    def gap(self, student: Average, fakes: Batch, step: Step) -> Tensor:
        """The velocity of the fakes minus the student's own, at noisy fakes, clipped."""
        x_t, t_B, _ = self.look("gap").noisy(fakes, step)
        gap = student(x_t, -t_B, -t_B) - student(x_t, t_B, t_B)
        return gap.clamp(-self.config.clip, self.config.clip)
