"""What VM, VD, CM and PCM have in common: the noisy samples, the teacher's velocity and the shared residual there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from fewstep.config.base import Strict
from fewstep.core.batch import Batch, Condition
from fewstep.core.guidance import Guidance
from fewstep.core.layout import Dense
from fewstep.core.objective import Nets, Step
from fewstep.core.times import TimeSampler
from fewstep.methods.residual import Derivative, Residual, phase_end

Strength = Annotated[float, Field(ge=0, strict=True)]  # strict: true and false are no numbers
UNIFORM = TimeSampler(kind="uniform")


class Ramp(Strict):
    """A guidance strength that moves from the first iteration to the last along a straight line."""

    start: Strength = Field(description="strength w at the first iteration")
    end: Strength = Field(description="strength w at the last iteration")

    def at(self, step: Step) -> float:
        """The strength at this step. It depends on the length of the run, which a resume then cannot change."""
        return self.start + (self.end - self.start) * step.index / max(1, step.total - 1)


class Range(Strict):
    """Guidance strengths of which each iteration draws one."""

    low: Strength = Field(description="least strength w")
    high: Strength = Field(description="largest strength w")


Strengths = Strength | Annotated[tuple[Strength, ...], Field(min_length=1)] | Ramp | Range | None


class NoisyConfig(Strict):
    """Keys of every objective that looks at noisy samples; its Config derives from this one."""

    t: TimeSampler = Field(default_factory=TimeSampler, description="distribution of the training time")
    rescale_t: float = Field(1.0, gt=0, description="warp of the student's time grid, and of its phase ends")
    p_uncond: float = Field(0.0, ge=0, le=1, description="share of samples whose student sees no condition")
    reduction: Literal["element", "sample"] = Field(
        "element", description="loss as mean over all elements, or over samples of each one's own mean"
    )


class PointConfig(NoisyConfig):
    """The same, and those of every objective that evaluates the residual there."""

    velocity: Literal["teacher", "data"] = Field(
        "teacher",
        description="velocity at the noisy sample: the guided teacher's, or the data's own, eps - x0",
    )


@dataclass(frozen=True)
class Point:
    """Samples ``x_t``, made with ``noise``, at times ``t_B`` [B], with the residual there; the student jumps to
    ``end_B`` [B]. ``interval_B`` [B] is the D of a finite difference."""

    x_t: Tensor
    noise: Tensor
    t_B: Tensor
    end_B: Tensor
    span: Tensor  # t - end, expanded to x_t
    residual: Residual
    interval_B: Tensor


@dataclass(frozen=True)
class Look:
    """The settings of one term's evaluation at noisy samples.

    Args:
        config: the shared keys.
        knobs: how the derivative is taken; its interval bounds the times.
        strengths: the teacher's guidance strength w, of a list or a range one value each step, or a ramp over the run;
            None is the teacher's own.
        phases: number of equal phases; the student jumps to the end of the one that holds t - D.
        name: of the term, for its draws of guidance and of dropped conditions.
        t: distribution of the term's own time, drawn with noise of its own; None shares time and noise with the other
            terms of the step.
    """

    config: NoisyConfig
    knobs: Derivative
    strengths: float | tuple[float, ...] | Ramp | Range | None
    phases: int = 1
    name: str = "main"
    t: TimeSampler | None = None

    def at(
        self,
        batch: Batch,
        nets: Nets,
        step: Step,
        previous: Callable[..., Tensor] | None = None,
        t_B: Tensor | None = None,
    ) -> Point:
        """Draws time and noise, and evaluates student and teacher there.

        Args:
            batch: real clean samples, or a student's own.
            previous: the network that predicts at t - D in place of the student.
            t_B: [B] the times, instead of a draw.
        """
        layout, knobs = batch.layout, self._knobs(step)
        x_t, t_B, noise = self.noisy(batch, step, t_B)
        cond = dropped(batch, step, self.config.p_uncond, f"drop/{self.name}")
        with torch.no_grad():
            velocity = self.velocity(batch, noise, x_t, t_B, nets, step)

        def student(x: Tensor, t: Tensor) -> Tensor:
            return cast(Tensor, nets.student(x, t, cond, layout))

        def before(x: Tensor, t: Tensor) -> Tensor:
            return cast(Tensor, (previous or nets.student)(x, t, cond, layout))

        residual = knobs.residual(student, x_t, t_B, velocity, layout, step, before)
        end_B = phase_end(knobs.before(t_B), self.phases, self.config.rescale_t)
        span = layout.expand(t_B - end_B, x_t)
        return Point(x_t, noise, t_B, end_B, span, residual, knobs.interval_at(t_B))

    def noisy(self, batch: Batch, step: Step, t_B: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x_t, the times [B] and the noise, of the draws "t" and "noise" or the term's own; ``t_B`` gives the times."""
        t_B = self.times(batch, step) if t_B is None else t_B
        noise = step.randn_like(batch.x0, self._draw("noise"))
        return step.interpolant.interpolate(batch.x0, noise, t_B, batch.layout), t_B, noise

    def times(self, batch: Batch, step: Step) -> Tensor:
        """[B] times from a draw u: s + D + (1 - D - s) u for a finite difference, s + (1 - s) u for jvp."""
        u_B = step.times(batch.layout, self.t or self.config.t, self._draw("t"))
        return self._knobs(step).times(u_B, step.interpolant.sigma_min)

    def _knobs(self, step: Step) -> Derivative:
        return replace(self.knobs, edges=step.edges)

    def _draw(self, name: str) -> str:
        return name if self.t is None else f"{name}/{self.name}"

    def velocity(self, batch: Batch, noise: Tensor, x_t: Tensor, t_B: Tensor, nets: Nets, step: Step) -> Tensor:
        """vT at x_t. The teacher never sees a dropped condition."""
        if isinstance(self.config, PointConfig) and self.config.velocity == "data":
            return step.interpolant.velocity(batch.x0, noise)
        return cast(Tensor, nets.teacher(x_t, t_B, batch.cond, batch.layout, guidance=self.guidance(step)))

    def guidance(self, step: Step) -> Guidance | None:
        """This step's guidance; None is the teacher's own."""
        strength = self.strength(step)
        return None if strength is None else Guidance.strength(strength)

    def strength(self, step: Step) -> float | None:
        """This step's guidance strength w; None is the teacher's own."""
        strengths, name = self.strengths, f"guidance/{self.name}"
        if isinstance(strengths, Ramp):
            return strengths.at(step)
        if isinstance(strengths, Range):
            return strengths.low + (strengths.high - strengths.low) * float(step.times(Dense(1), UNIFORM, name))
        return step.choice(strengths, name) if isinstance(strengths, tuple) else strengths


def dropped(batch: Batch, step: Step, share: float, name: str) -> Condition:
    """The batch's condition with a share of it replaced by the negative one; ``name`` is that of the draw."""
    if share == 0:
        return batch.cond
    return batch.cond.dropped(step.times(batch.layout, UNIFORM, name) < share)
