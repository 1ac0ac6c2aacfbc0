"""Samplers: from noise to data along a grid of times. They have no state."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.batch import Condition
from fewstep.core.guidance import VelocityField, sampling
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense, Layout
from fewstep.core.objective import Step

OnStep = Callable[[int, Tensor, Tensor], None]  # (step, state after it, predicted data)


@dataclass(frozen=True)
class Move:
    """One step of a sampler, number ``index``, from the state ``x`` at time ``t`` to the earlier time ``s``.

    ``noise`` is the sampler's setting, the share of fresh noise in [0, 1].
    """

    index: int
    x: Tensor
    t: float
    s: float
    field: VelocityField
    cond: Condition
    layout: Layout
    step: Step
    noise: float = 0.0

    def times(self, t: float) -> Tensor:
        """[B] copies of t in float64: a backbone that scales time rounds once, after scaling."""
        return torch.full((self.layout.batch_size,), t, dtype=torch.float64, device=self.x.device)

    def velocity(self, x: Tensor, t: float) -> Tensor:
        """The velocity at (x, t)."""
        return self.field(x, self.times(t), self.cond, self.layout)

    def data(self, x: Tensor, v: Tensor, t: float) -> Tensor:
        """The data end of the straight line through x at t with velocity v."""
        return self.step.interpolant.x0(x, v, self.times(t), self.layout)

    def average(self, end: float) -> Tensor:
        """A two-time student's average velocity from t down to ``end``."""
        return self.field(self.x, self.times(self.t), self.cond, self.layout, s_B=self.times(end))

    def noised(self, data: Tensor, share: float) -> Tensor:
        """``data`` with this share of the noise of time s, drawn anew."""
        fresh = share * self.step.randn_like(self.x, f"renoise/{self.index}")
        return self.step.interpolant.interpolate(data, fresh, self.times(self.s), self.layout)


class Sampler:
    """Carries noise at grid[0] = 1 to data at grid[-1] = 0 along a velocity field.

    Args:
        advance: the rule of one step; returns the state at ``s`` and the data that the step predicts.
        noise: share of fresh noise in each step, which the rule reads as ``move.noise``; None for a rule that adds no
            noise.
    """

    def __init__(self, advance: Callable[[Move], tuple[Tensor, Tensor]], noise: float | None = None) -> None:
        functools.update_wrapper(self, advance)
        self.advance, self.noise = advance, noise

    def with_noise(self, noise: float) -> Sampler:
        """The same rule with another share of fresh noise."""
        return Sampler(self.advance, noise)

    @functools.cached_property
    def two_time(self) -> bool:
        """Whether the sampler passes a target time ``s_B``, found out by two steps along a field that is 0."""
        passed = []

        def field(x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
            passed.append(s_B is not None)
            return torch.zeros_like(x)

        with contextlib.suppress(Exception):  # a rule may fail on these samples; its calls up to there count
            self(field, torch.zeros(1, 1), Condition(), Dense(1), [1.0, 0.5, 0.0], Step(0, Interpolant()))
        return any(passed)

    @sampling()
    @torch.no_grad()
    def __call__(
        self,
        field: VelocityField,
        noise: Tensor,
        cond: Condition,
        layout: Layout,
        grid: list[float],
        step: Step,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """The samples, [B, ...] or [T, C] like ``noise``; all tensors are on one device.

        Args:
            grid: falling times, from 1 to 0.
            step: draws fresh noise, and has the interpolant.
            on_step: is called after each step.
        """
        x = noise
        for index, (t, s) in enumerate(itertools.pairwise(grid)):
            x, data = self.advance(Move(index, x, t, s, field, cond, layout, step, self.noise or 0.0))
            if on_step is not None:
                on_step(index, x, data)
        return x


@Sampler
def euler(move: Move) -> tuple[Tensor, Tensor]:
    """x_s = x_t - (t - s) v(x_t, t): for a teacher its ODE, for a one-time student its average velocity."""
    v = move.velocity(move.x, move.t)
    return move.x - (move.t - move.s) * v, move.data(move.x, v, move.t)


@Sampler
def heun(move: Move) -> tuple[Tensor, Tensor]:
    """Second order: the mean of the velocities at both ends of a step, also in the last step to 0."""
    v = move.velocity(move.x, move.t)
    v_next = move.velocity(move.x - (move.t - move.s) * v, move.s)
    x = move.x - (move.t - move.s) * 0.5 * (v + v_next)
    return x, move.data(x, v_next, move.s)


@functools.partial(Sampler, noise=1.0)
def consistency(move: Move) -> tuple[Tensor, Tensor]:
    """Jump to the data with the average velocity, put noise on it, jump again (consistency models, Alg. 1).

    A share ``noise`` of that noise is fresh, and sqrt(1 - noise^2) is what x_t itself has according to the student, the
    noise end of the line through the data and x_t. So 0 is ``euler``; the setting is DDIM's eta (arXiv 2010.02502).
    """
    average = move.velocity(move.x, move.t)
    data = move.x - move.t * average
    if move.s == 0:
        return data, data
    kept = move.s * math.sqrt(1 - move.noise**2) * (data + average)
    return move.noised(data, move.noise) + kept, data


@Sampler
def jump(move: Move) -> tuple[Tensor, Tensor]:
    """x_s = x_t - (t - s) F(x_t, t, s): a two-time student (MeanFlow, shortcut models)."""
    average = move.average(move.s)
    return move.x - (move.t - move.s) * average, move.x - move.t * average


@functools.partial(Sampler, noise=0.5)
def gamma(move: Move) -> tuple[Tensor, Tensor]:
    """gamma-sampling of a two-time student (Consistency Trajectory Models, arXiv 2310.02279, Alg. 3): jump past s to
    the time r where the noise is sqrt(1 - gamma^2) times that of s, then add fresh noise up to s; ``noise`` is gamma.

    0 is ``jump``, and 1 jumps to the data at each step. The paper's x is ours over 1 - t, so its noise levels are
    b / (1 - t) with b = sigma_min + (1 - sigma_min) t.
    """
    sigma_min, r = move.step.interpolant.sigma_min, 0.0
    if move.s > 0:
        level = math.sqrt(1 - move.noise**2) * (sigma_min + (1 - sigma_min) * move.s) / (1 - move.s)
        r = max(0.0, (level - sigma_min) / (1 - sigma_min + level))
    average = move.average(r)
    x, data = move.x - (move.t - r) * average, move.x - move.t * average
    if move.s == 0:
        return x, data
    return move.noised(x / (1 - r), move.noise), data
