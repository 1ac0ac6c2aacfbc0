"""What VM, VD, CM and PCM have in common: the noisy samples, the teacher's velocity and the shared residual there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fewstep.config.base import Strict
from fewstep.core.batch import Batch, Condition
from fewstep.core.guidance import Guidance
from fewstep.core.layout import Dense
from fewstep.core.objective import Nets, Step
from fewstep.core.times import TimeSampler
from fewstep.methods.residual import Derivative, Residual, phase_end

Strength = Annotated[float, Field(ge=0, strict=True)]  # strict: refuses true and false
UNIFORM = TimeSampler(kind="uniform")


class Ramp(Strict):
    """A guidance strength that changes linearly from the first iteration to the last."""

    start: Strength = Field(description="strength w at the first iteration")
    end: Strength = Field(description="strength w at the last iteration")

    def at(self, step: Step) -> float:
        """The strength at this step. It depends on the length of the run, which a resume then cannot change."""
        return self.start + (self.end - self.start) * step.index / max(1, step.total - 1)


class Range(Strict):
    """A range of guidance strengths, from which each micro-batch draws one."""

    low: Strength = Field(description="least strength w")
    high: Strength = Field(description="largest strength w")


Strengths = Strength | Annotated[tuple[Strength, ...], Field(min_length=1)] | Ramp | Range | None
GUIDANCE = (
    "teacher's w in (1 + w) c - w u: a number, a list or {low, high} to draw from at each step, {start, end} for a "
    "ramp over the run; none: the teacher's own"
)


class NoisyConfig(Strict):
    """Keys of every objective that is evaluated at noisy samples; its ``Config`` derives from this class."""

    t: TimeSampler = Field(default_factory=TimeSampler, description="distribution of the training time")
    rescale_t: float = Field(1.0, gt=0, description="warp of the student's time grid, and of its phase ends")
    p_uncond: float = Field(0.0, ge=0, le=1, description="share of samples whose student sees no condition")
    reduction: Literal["element", "sample"] = Field(
        "element", description="loss as the mean over all elements, or over the means of the samples"
    )


class PointConfig(NoisyConfig):
    """Those keys and the ones of objectives that evaluate the residual at noisy samples."""

    velocity: Literal["teacher", "data"] = Field(
        "teacher",
        description="velocity at the noisy sample: the guided teacher's, or eps - x0 of the training sample and noise",
    )


class GuidedConfig(PointConfig):
    """Those keys, and the teacher's guidance for objectives that have one term."""

    guidance: Strengths = Field(None, description=GUIDANCE)

    @model_validator(mode="after")
    def _data_has_no_guidance(self) -> GuidedConfig:
        if self.velocity == "data" and self.guidance is not None:
            raise ValueError("velocity 'data' has no teacher that could be guided: guidance must be none")
        return self


@dataclass(frozen=True)
class Point:
    """Samples ``x_t``, made with ``noise``, at times ``t_B`` [B], with the residual there. The student jumps to
    ``end_B`` [B]; ``interval_B`` [B] is the interval D of the finite difference."""

    x_t: Tensor
    noise: Tensor
    t_B: Tensor
    end_B: Tensor
    span: Tensor  # t - end, expanded to x_t
    residual: Residual
    interval_B: Tensor


@dataclass(frozen=True)
class Look:
    """How one loss term is evaluated at noisy samples.

    Args:
        config: the shared keys.
        knobs: how the derivative is taken; its interval bounds the times.
        strengths: the teacher's guidance strength w: a number, a list or range from which each step draws one, or a
            ramp over the run; None for the teacher's own guidance.
        phases: number of equal phases; the student jumps to the lower end of the one that contains t - D.
        name: name of the term, for its draws of guidance and of dropped conditions.
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
        """Draw time and noise, and evaluate student and teacher there.

        Args:
            batch: clean training samples, or a student's own samples.
            previous: the network that predicts at t - D in place of the student.
            t_B: [B] the times; None draws them.
        """
        layout, knobs = batch.layout, self.knobs_at(step)
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
        """x_t, the times [B] and the noise, from the draws "t" and "noise" or from the term's own; ``t_B`` replaces the
        drawn times."""
        t_B = self.times(batch, step) if t_B is None else t_B
        noise = step.randn_like(batch.x0, self._draw("noise"))
        return step.interpolant.interpolate(batch.x0, noise, t_B, batch.layout), t_B, noise

    def times(self, batch: Batch, step: Step) -> Tensor:
        """[B] times from a draw u, with s = ``sigma_min``: s + D + (1 - D - s) u for a finite difference, s + (1 - s) u
        for jvp."""
        u_B = step.times(batch.layout, self.t or self.config.t, self._draw("t"))
        return self.knobs_at(step).times(u_B, step.interpolant.sigma_min)

    def knobs_at(self, step: Step) -> Derivative:
        """``knobs`` with the times at which this step's teacher jumps."""
        return replace(self.knobs, edges=step.edges)

    def _draw(self, name: str) -> str:
        return name if self.t is None else f"{name}/{self.name}"

    def velocity(self, batch: Batch, noise: Tensor, x_t: Tensor, t_B: Tensor, nets: Nets, step: Step) -> Tensor:
        """The velocity vT at x_t, as ``config.velocity`` says. The teacher never sees a dropped condition."""
        if isinstance(self.config, PointConfig) and self.config.velocity == "data":
            return step.interpolant.velocity(batch.x0, noise)
        return cast(Tensor, nets.teacher(x_t, t_B, batch.cond, batch.layout, guidance=self.guidance(step)))

    def guidance(self, step: Step) -> Guidance | None:
        """This step's guidance; None for the teacher's own."""
        strength = self.strength(step)
        return None if strength is None else Guidance.strength(strength)

    def strength(self, step: Step) -> float | None:
        """This step's guidance strength w; None for the teacher's own guidance."""
        strengths, name = self.strengths, f"guidance/{self.name}"
        if isinstance(strengths, Ramp):
            return strengths.at(step)
        if isinstance(strengths, Range):
            return strengths.low + (strengths.high - strengths.low) * float(step.times(Dense(1), UNIFORM, name))
        return step.choice(strengths, name) if isinstance(strengths, tuple) else strengths


def dropped(batch: Batch, step: Step, share: float, name: str) -> Condition:
    """The batch's condition, replaced by the negative one for a random ``share`` of the samples; ``name`` is the name
    of the draw."""
    if share == 0:
        return batch.cond
    return batch.cond.dropped(step.times(batch.layout, UNIFORM, name) < share)
