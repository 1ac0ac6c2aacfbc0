"""The residual that CM, sCM, VM, FACM, MeanFlow and Align Your Flow share, and its settings.

A student predicts its average velocity F from t down to an end e: (t - e) F(x_t, t) is the displacement along the
teacher's path. The end is 0, the end of a phase, or the target time s of a two-time student F(x_t, t, s).
Differentiating along that path, in the direction (vT, 1) with a constant end, gives F + (t - e) dF/dt = vT, so

    r = F + (t - e) sg(dF/dt) - vT                       (MDT-dist, arXiv 2509.04406; MeanFlow, arXiv 2505.13447)

is 0 at the optimum, and u = F + (t - e) dF/dt is the student's own instantaneous velocity. Consistency distillation
compares states instead: its residual is -D r with t - e - D in place of t - e (see ``Residual.states``).
Everything reduces and broadcasts through the layout alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fewstep.config.base import Strict
from fewstep.core.derivatives import Tangents
from fewstep.core.layout import Layout
from fewstep.core.objective import Step
from fewstep.core.times import rescale

Kind = Literal["discrete", "continuous", "central"]
Norm = Literal["none", "sample", "element"]
Student = Callable[[Tensor, Tensor], Tensor]  # (x, t_B) -> F, with condition, layout and end bound
EARLIEST = 0.002  # the earliest training time if D varies with t; EDM's smallest noise level


@dataclass(frozen=True)
class Residual:
    """The parts of r at (x_t, t), each like x_t: ``value`` F with its graph, ``derivative`` dF/dt and ``velocity`` vT
    detached."""

    value: Tensor
    derivative: Tensor
    velocity: Tensor

    def instantaneous(self, span: Tensor) -> Tensor:
        """u = F + span dF/dt, where ``span`` is t - e expanded to x_t."""
        return self.value + span * self.derivative

    def target(self, span: Tensor) -> Tensor:
        """vT - span dF/dt, the detached regression target of F: F - target = r."""
        return self.velocity - span * self.derivative

    def tangent(self, span: Tensor, warmup: float = 1.0) -> Tensor:
        """g = F - vT + warmup span dF/dt, detached: r itself, with its derivative faded in (sCM, arXiv 2410.11081).

        Regression of F on sg(F - g) has the gradient 2 g dF, also where g is normalised.
        """
        return (self.value - self.velocity + warmup * span * self.derivative).detach()

    def states(self, x_t: Tensor, span: Tensor, interval: float | Tensor) -> tuple[Tensor, Tensor]:
        """The student's jump from t to e, with its graph, and the jump from the teacher's point at t - D, detached.

        The target is made from their difference, -D (F + (span - D) dF/dt - vT). The graph runs through span F, so the
        gradient of a squared distance weights r by span D.
        """
        jump = x_t - span * self.value
        error = self.instantaneous(span - interval) - self.velocity
        return jump, (jump + interval * error).detach()


@dataclass(frozen=True)
class Derivative:
    """How dF/dt along (vT, 1) is taken.

    Args:
        kind: "continuous" by ``Step.jvp``, "discrete" as [F(x_t, t) - F(x_t - D vT, t - D)] / D, "central" as
            [F(x_t + D vT, t + D) - F(x_t - D vT, t - D)] / 2D.
        interval: D, or for "discrete" a function from times [B] to the D [B] of each, in (0, t].
        norm: "none"; "sample" dv / (|dv| + c), the norm over all elements of a sample (MDT-dist's d_norm with
            c = 0.1, sCM's tangent normalisation); "element" dv / (rms(dv) + c), which does not shrink with the number
            of elements.
        constant: c.
        edges: times at which the teacher's velocity jumps. A D that would reach across one ends there.
    """

    kind: Kind = "discrete"
    interval: float | Callable[[Tensor], Tensor] = 0.01
    norm: Norm = "none"
    constant: float = 0.1
    edges: tuple[float, ...] = ()

    def residual(
        self,
        student: Student,
        x_t: Tensor,
        t_B: Tensor,
        velocity: Tensor,
        layout: Layout,
        step: Step,
        previous: Student | None = None,
    ) -> Residual:
        """The parts of r at (x_t, t_B).

        Args:
            velocity: the teacher's velocity there, like ``x_t``.
            previous: predicts at t - D in place of the student, such as its moving average; "discrete" only.
        """
        dtype = x_t.dtype
        velocity = velocity.detach().to(dtype)
        if self.kind != "discrete":
            jvp = step.jvp
            if self.kind == "central":
                assert not callable(self.interval)
                jvp = partial(Tangents("finite-difference", self.interval), edges=step.edges)
            value, slope = jvp(student, (x_t, t_B), (velocity, torch.ones_like(t_B)), layout)
            value, slope = value.to(dtype), slope.to(dtype)
        else:
            value = student(x_t, t_B).to(dtype)
            interval_B = self.interval_at(t_B)
            interval = layout.expand(interval_B, x_t)
            with torch.no_grad():
                before = (previous or student)(x_t - interval * velocity, t_B.double() - interval_B)
            slope = (value.detach() - before.to(dtype)) / interval
        return Residual(value, normalise(slope, layout, self.norm, self.constant), velocity)

    def times(self, u_B: Tensor, sigma_min: float) -> Tensor:
        """[B] draws from (0, 1) mapped to where the residual is defined: t >= sigma_min, for "discrete" t - D too.

        Times less than D above an edge are moved into the upper half of that range, where D is at most halved: a tiny D
        would make the difference noise.
        """
        first = EARLIEST if callable(self.interval) else self.interval
        low = sigma_min + (first if self.kind == "discrete" else 0.0)
        t_B = low + (1 - low) * u_B
        for edge in self.edges if self.kind == "discrete" and not callable(self.interval) else ():
            near_B = (t_B > edge) & (t_B < edge + first)
            t_B = torch.where(near_B, (t_B + edge + first) / 2, t_B).clamp(max=1.0)
        return t_B

    def interval_at(self, t_B: Tensor) -> Tensor:
        """[B] the D of each time, in float64: t - D in float32 has a rounding error that dividing by D magnifies."""
        t_B = t_B.double()
        interval_B = self.interval(t_B) if callable(self.interval) else torch.full_like(t_B, self.interval)
        for edge in self.edges:
            interval_B = torch.where(t_B > edge, torch.minimum(interval_B, t_B - edge), interval_B)
        return interval_B

    def before(self, t_B: Tensor) -> Tensor:
        """[B] the earliest time at which the residual at t evaluates a network, which decides its phase."""
        return t_B - self.interval_at(t_B).to(t_B.dtype) if self.kind == "discrete" else t_B


def normalise(slope: Tensor, layout: Layout, norm: Norm, constant: float) -> Tensor:
    """dF/dt normalised per sample, see ``Derivative.norm``."""
    if norm == "none":
        return slope
    size_B = layout.norm(slope) if norm == "sample" else layout.mean(slope.square()).sqrt()
    return slope / (layout.expand(size_B, slope) + constant)


def faded_in(step: Step, warmup: float) -> float:
    """The factor of dF/dt at this step, which rises linearly from 0 to 1. A ``warmup`` below 1 is a share of the run,
    one of 1 or more a number of iterations; without warm-up (0) the factor is 1."""
    if warmup == 0:
        return 1.0
    return min(1.0, (step.progress if warmup < 1 else step.index) / warmup)


class TangentConfig(Strict):
    """Keys of objectives that regress on a normalised tangent, as sCM does; their ``Config`` also derives from this
    class."""

    norm: Norm = Field(
        "element",
        description="size that the tangent is divided by: none; sample: its norm (as published); element: its RMS",
    )
    norm_constant: float = Field(0.1, gt=0, description="c in g / (size + c)")
    warmup: float = Field(
        0.0,
        ge=0,
        description="dF/dt is faded in over a share of the run (below 1) or a number of iterations (1 or more)",
    )

    def error(self, residual: Residual, span: Tensor, layout: Layout, step: Step, derivative: float = 1.0) -> Tensor:
        """F - sg(F - g / (size + c)), like F; ``derivative`` is a factor of dF/dt in g, besides that of the warm-up."""
        tangent = residual.tangent(span, derivative * faded_in(step, self.warmup))
        return residual.value - residual.value.detach() + normalise(tangent, layout, self.norm, self.norm_constant)


def phase_end(t_B: Tensor, phases: int, rescale_t: float = 1.0) -> Tensor:
    """[B] the lower end of the phase that t lies in, of ``phases`` equal ones (PCM, arXiv 2405.18407); 0 for one phase.

    ``rescale_t`` warps the ends as it warps the grid of a sampler of that many steps, so both have the same times.
    """
    linear = rescale(t_B, 1 / rescale_t)
    end = (linear * phases).floor().clamp(0, phases - 1) / phases
    return rescale(end, rescale_t)
