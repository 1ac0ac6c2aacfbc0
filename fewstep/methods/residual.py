"""The one residual that CM, sCM, VM, FACM, MeanFlow and Align Your Flow share, with its knobs.

A student predicts its average velocity F from t down to an end e: (t - e) F(x_t, t) is the displacement along the
teacher's path. The end is 0, the end of a phase, or the target time s that a two-time student F(x_t, t, s) is told.
Differentiated along that path, direction (vT, 1) with a constant end, this reads F + (t - e) dF/dt = vT, so

    r = F + (t - e) sg(dF/dt) - vT                       (MDT-dist, arXiv 2509.04406; MeanFlow, arXiv 2505.13447)

is 0 at the optimum, and u = F + (t - e) dF/dt is the student's own instantaneous velocity. Consistency distillation
compares states instead: its residual is -D r with t - e - D in place of t - e (see ``Residual.states``).
Everything reduces and broadcasts through the layout alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
EARLIEST = 0.002  # the first time looked at where D varies with t; EDM's smallest noise level


@dataclass(frozen=True)
class Residual:
    """The parts of r at one point: ``value`` F with its graph, ``derivative`` dF/dt and ``velocity`` vT detached."""

    value: Tensor
    derivative: Tensor
    velocity: Tensor

    def instantaneous(self, span: Tensor) -> Tensor:
        """u = F + span dF/dt; ``span`` is t - e, expanded."""
        return self.value + span * self.derivative

    def target(self, span: Tensor) -> Tensor:
        """vT - span dF/dt, what F is regressed on, detached as its parts are: F - target = r."""
        return self.velocity - span * self.derivative

    def tangent(self, span: Tensor, warmup: float = 1.0) -> Tensor:
        """g = F - vT + warmup span dF/dt, detached: r itself, with its derivative faded in (sCM, arXiv 2410.11081).

        Regression of F on sg(F - g) has the gradient 2 g dF, also where g is normalised.
        """
        return (self.value - self.velocity + warmup * span * self.derivative).detach()

    def states(self, x_t: Tensor, span: Tensor, interval: float | Tensor) -> tuple[Tensor, Tensor]:
        """The student's jump from t to e, with its graph, and the jump from the teacher's point at t - D, detached.

        Their difference is -D (F + (span - D) dF/dt - vT), which is how the target is made here. The graph runs
        through span F, so the gradient of a squared distance weighs r by span D.
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
        interval: D, or for "discrete" a function that gives each of the times [B] its own, in (0, t].
        norm: "none"; "sample" dv / (|dv| + c), the norm over all elements of a sample (MDT-dist's d_norm with
            c = 0.1, sCM's tangent normalisation); "element" dv / (rms(dv) + c), which no longer shrinks with the
            number of elements.
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
        """The parts of r at (x_t, t_B) for the teacher's velocity there.

        Args:
            previous: predicts at t - D in place of the student (an average of it); discrete only.
        """
        dtype = x_t.dtype
        velocity = velocity.detach().to(dtype)
        if self.kind != "discrete":
            jvp = step.jvp
            if self.kind == "central":
                assert not callable(self.interval)
                jvp = Tangents("finite-difference", self.interval)
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
        """Draws in (0, 1) moved to where the residual is defined: t >= sigma_min, and t - D >= sigma_min.

        Those less than D above an edge are moved into the upper half of that range, where D is cut by half at most:
        with a tiny D the difference would be noise.
        """
        first = EARLIEST if callable(self.interval) else self.interval
        low = sigma_min + (first if self.kind == "discrete" else 0.0)
        t_B = low + (1 - low) * u_B
        for edge in self.edges if self.kind == "discrete" and not callable(self.interval) else ():
            near_B = (t_B > edge) & (t_B < edge + first)
            t_B = torch.where(near_B, (t_B + edge + first) / 2, t_B).clamp(max=1.0)
        return t_B

    def interval_at(self, t_B: Tensor) -> Tensor:
        """[B] the D of each time, in float64: t - D in float32 would lose digits that the division by D magnifies."""
        t_B = t_B.double()
        found_B = self.interval(t_B) if callable(self.interval) else torch.full_like(t_B, self.interval)
        for edge in self.edges:
            found_B = torch.where(t_B > edge, torch.minimum(found_B, t_B - edge), found_B)
        return found_B

    def before(self, t_B: Tensor) -> Tensor:
        """[B] the earliest time that the residual at t looks at, which decides its phase."""
        return t_B - self.interval_at(t_B).to(t_B.dtype) if self.kind == "discrete" else t_B


def normalise(slope: Tensor, layout: Layout, norm: Norm, constant: float) -> Tensor:
    """dF/dt with its size taken away, by sample; see ``Derivative.norm``."""
    if norm == "none":
        return slope
    size_B = layout.norm(slope) if norm == "sample" else layout.mean(slope.square()).sqrt()
    return slope / (layout.expand(size_B, slope) + constant)


def faded_in(step: Step, warmup: float) -> float:
    """The factor of dF/dt at this step, which rises from 0 to 1 along a line: for a ``warmup`` below 1 over this share
    of the run, from 1 on over so many iterations. Without warm-up (0) it is 1."""
    if warmup == 0:
        return 1.0
    return min(1.0, (step.progress if warmup < 1 else step.index) / warmup)


class TangentConfig(Strict):
    """Keys of objectives that regress on a normalised tangent, as sCM does; their Config derives from this one, too."""

    norm: Norm = Field(
        "element", description="size taken from the tangent: none, norm over the sample (published), root mean square"
    )
    norm_constant: float = Field(0.1, gt=0, description="c in g / (size + c)")
    warmup: float = Field(
        0.0,
        ge=0,
        description="dF/dt is faded in: below 1 over this share of the run, from 1 on over so many iterations",
    )

    def error(self, residual: Residual, span: Tensor, layout: Layout, step: Step, derivative: float = 1.0) -> Tensor:
        """F - sg(F - g / (size + c)); ``derivative`` is a factor of dF/dt in g beside that of the warm-up."""
        tangent = residual.tangent(span, derivative * faded_in(step, self.warmup))
        return residual.value - residual.value.detach() + normalise(tangent, layout, self.norm, self.norm_constant)


def phase_end(t_B: Tensor, phases: int, rescale_t: float = 1.0) -> Tensor:
    """The lower end of the phase that t lies in, of ``phases`` equal ones (PCM, arXiv 2405.18407); 0 for one phase.

    ``rescale_t`` warps the ends as it does the grid of a sampler with as many steps, so both have the same times.
    """
    linear = rescale(t_B, 1 / rescale_t)
    end = (linear * phases).floor().clamp(0, phases - 1) / phases
    return rescale(end, rescale_t)
