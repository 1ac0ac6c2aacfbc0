"""TwinFlow (arXiv 2512.05150): a flow map that holds the velocity of its own samples at negative times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar, cast

import torch
from torch import Tensor

from fewstep.core.batch import Batch, Condition
from fewstep.core.contract import Contract
from fewstep.core.objective import Nets, Objective, Step
from fewstep.methods.distance import distance
from fewstep.methods.point import UNIFORM, Look, dropped
from fewstep.methods.residual import Derivative, Residual
from fewstep_distribution.config import TwinFlowConfig

B = TypeVar("B", bound=Batch)
ONE, NEAR, ANY, FAKE = range(4)  # the four parts of a batch
FLOOR = 1e-6  # of the mean square that a sample's error is divided by a power of; the square of the published 1e-3


@dataclass(frozen=True, kw_only=True)
class Points(Batch):
    """Noisy samples ``x_t`` at ``t_B`` [B], from ``noise``, with the student's ``average`` velocity from there to
    ``s_B`` [B], detached, under the condition ``seen`` that the student is told."""

    x_t: Tensor
    noise: Tensor
    t_B: Tensor
    s_B: Tensor
    average: Tensor
    seen: Condition


class TwinFlow(Objective[TwinFlowConfig]):
    """A student F(x, t, s) of times in [-1, 1]: at t > 0 the average velocity from t to s, at t < 0 the velocity of the
    student's own samples ("fakes") at -t. Each part of a batch, a quarter, learns one thing:

        one-step     t = 1 and s = 0,
        near         s from (1 - near) t to t,
        any          s from 0 to t: all three learn the flow map, by the residual d/dt [(t - s) F] - v,
        fake         F(x_t, -t, -t) learns eps - x with x_t between fakes x = z - F(z, 1, 0) and eps.

    The one-step part also follows the difference of both velocities at its own noisy fakes, with the gradient
    F(x_t, -t, -t) - F(x_t, t, t) of F(z, 1, 0): where the first is right, that of KL(fakes || F's own flow). Residual
    and difference are clipped to ``clip`` by element, and an error is divided by its own mean square to the power
    ``power``. v is the guided teacher's; published is the data's, with the student's own guidance, which needs no
    teacher.

    The residual is the published one of first order, [(t - s) F(x_t, t, s) - (t - D - s) F(x_t - D v, t - D, s)] / D
    less v. Left out are the published code's second order, its average of the student there, and its weight by t - s.
    """

    Config = TwinFlowConfig
    needs: ClassVar[frozenset[str]] = frozenset({"two_time", "negative_time"})
    sampler = "jump"

    def contract(self) -> Contract:
        return Contract(sampler=self.sampler, rescale_t=self.config.rescale_t, two_time=True)

    def look(self, name: str = "main") -> Look:
        """Times, noise and the teacher; under a ``name`` the draws are its own."""
        config = self.config
        own = None if name == "main" else config.t
        return Look(config, Derivative("discrete", config.interval), config.guidance, name=name, t=own)

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        layout, config = batch.layout, self.config
        # Where the parts begin is drawn: in small batches too, each has its quarter in the mean over iterations.
        order_B = torch.arange(layout.batch_size, device=batch.x0.device)
        part_B = (order_B + int(step.choice((0, 1, 2, 3), "part"))) % 4
        fake_B, seen = part_B == FAKE, dropped(batch, step, config.p_uncond, "drop/main")
        t_B, s_B = self.times(part_B, batch, step)
        with torch.no_grad():
            x0 = filled(batch.x0, fake_B, replace(batch, cond=seen), lambda part: self.fakes(part, nets, step))
        noise = step.randn_like(x0, "noise")
        x_t, sign_B = step.interpolant.interpolate(x0, noise, t_B, layout), torch.where(fake_B, -1.0, 1.0)
        average = nets.student(x_t, sign_B * t_B, seen, layout, s_B=sign_B * s_B).to(x_t.dtype)
        with torch.no_grad():
            at = Points(
                x0, layout, batch.cond, x_t=x_t, noise=noise, t_B=t_B, s_B=s_B, average=average.detach(), seen=seen
            )
            error = average - step.interpolant.velocity(x0, noise)
            error = filled(error, ~fake_B, at, lambda part: self.residual(part, nets, step))
            gap = filled(torch.zeros_like(error), part_B == ONE, at, lambda part: self.gap(part, nets, step))

        def descent(gradient: Tensor, weight_B: Tensor) -> Tensor:
            """A term that moves the average velocity against this gradient."""
            weight_B = weight_B * (layout.mean(gradient.square()) + FLOOR) ** -config.power
            return distance(average - (average - gradient).detach(), weight_B, layout, None, config.reduction)

        ones_B = torch.ones_like(t_B)  # the gap's weight counts for the mean over its quarter
        twin_B = fake_B.to(t_B)
        terms = {"flow": descent(error, ones_B - twin_B), "twin": descent(error, twin_B)}
        return terms | {"gap": descent(gap, 4 * config.weight * ones_B)}

    def times(self, part_B: Tensor, batch: Batch, step: Step) -> tuple[Tensor, Tensor]:
        """[B] t > 0 and s <= t; the fakes' are meant with the opposite sign."""
        t_B, share_B = self.look().times(batch, step), step.times(batch.layout, UNIFORM, "s")
        t_B = torch.where(part_B == ONE, 1.0, t_B)
        share_B = torch.where(part_B == NEAR, self.config.near * share_B, share_B)
        share_B = torch.where(part_B == ONE, 1.0, torch.where(part_B == FAKE, 0.0, share_B))
        return t_B, t_B - share_B * t_B

    def fakes(self, batch: Batch, nets: Nets, step: Step) -> Tensor:
        """The student's samples in one step."""
        noise = step.randn_like(batch.x0, "noise_fake")
        one_B = torch.ones(batch.layout.batch_size, device=noise.device, dtype=noise.dtype)
        average = nets.student(noise, one_B, batch.cond, batch.layout, s_B=torch.zeros_like(one_B))
        return noise - cast(Tensor, average).to(noise.dtype)

    def residual(self, at: Points, nets: Nets, step: Step) -> Tensor:
        """d/dt [(t - s) F] - v along v, clipped; where s is nearer than D, F - v."""
        interval, layout = self.config.interval, at.layout
        velocity = self.look().velocity(at, at.noise, at.x_t, at.t_B, nets, step).to(at.x_t.dtype)
        before = nets.student(
            at.x_t - interval * velocity, at.t_B.double() - interval, at.seen, layout, s_B=at.s_B.double()
        )
        slope = (at.average - before.to(at.x_t.dtype)) / interval
        span = layout.expand((at.t_B - at.s_B - interval).clamp(min=0), slope)
        return Residual(at.average, slope, velocity).tangent(span).clamp(-self.config.clip, self.config.clip)

    def gap(self, at: Points, nets: Nets, step: Step) -> Tensor:
        """The velocity of the fakes less the student's own, clipped, at noisy samples of its step from 1 to 0."""
        x_t, t_B, _ = self.look("gap").noisy(replace(at, x0=at.x_t - at.average), step)
        twin, own = (nets.student(x_t, time_B, at.seen, at.layout, s_B=time_B) for time_B in (-t_B, t_B))
        return cast(Tensor, twin - own).to(x_t.dtype).clamp(-self.config.clip, self.config.clip)


def filled(x: Tensor, chosen_B: Tensor, batch: B, make: Callable[[B], Tensor]) -> Tensor:
    """x with the rows of the chosen samples (bool [B]) replaced by what ``make`` gives for their part of the batch."""
    rows_B = chosen_B.nonzero().flatten()
    if len(rows_B) == 0:
        return x
    mask = batch.layout.expand(chosen_B.to(x.dtype), x).expand_as(x) > 0
    return x.masked_scatter(mask, make(cast(B, batch.select(rows_B))))
