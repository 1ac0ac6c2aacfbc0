"""Samplers: from noise to data along a grid of times. They have no state."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.backbone import VelocityField
from fewstep.core.batch import Condition
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense, Layout
from fewstep.core.objective import Step

OnStep = Callable[[int, Tensor, Tensor], None]  # (step, state after it, predicted data)


@dataclass(frozen=True)
class Move:
    """One step of a sampler, number ``index``, from the state ``x`` at time ``t`` to the earlier time ``s``."""

    index: int
    x: Tensor
    t: float
    s: float
    field: VelocityField
    cond: Condition
    layout: Layout
    step: Step

    def times(self, t: float) -> Tensor:
        """[B] copies of t in float64: a backbone that scales time rounds once, after scaling."""
        return torch.full((self.layout.batch_size,), t, dtype=torch.float64, device=self.x.device)

    def velocity(self, x: Tensor, t: float) -> Tensor:
        """The velocity at (x, t)."""
        return self.field(x, self.times(t), self.cond, self.layout)

    def data(self, x: Tensor, v: Tensor, t: float) -> Tensor:
        """The data end of the straight line through x at t with velocity v."""
        return self.step.interpolant.x0(x, v, self.times(t), self.layout)


class Sampler:
    """Carries noise from grid[0] = 1 to grid[-1] = 0, a function of a velocity field.

    Args:
        advance: the rule of one step; returns the state at ``s`` and the data predicted there.
    """

    def __init__(self, advance: Callable[[Move], tuple[Tensor, Tensor]]) -> None:
        functools.update_wrapper(self, advance)
        self.advance = advance

    @functools.cached_property
    def two_time(self) -> bool:
        """Whether it tells the network where each step ends (``s_B``), found by two steps of a field that is 0."""
        told = []

        def field(x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
            told.append(s_B is not None)
            return torch.zeros_like(x)

        with contextlib.suppress(Exception):  # a rule that takes real samples only: what it did before counts
            self(field, torch.zeros(1, 1), Condition(), Dense(1), [1.0, 0.5, 0.0], Step(0, Interpolant()))
        return any(told)

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
        """The samples, [B, ...] or [T, C] as ``noise``; ``on_step`` sees each step, ``step`` serves fresh noise."""
        x = noise
        for index, (t, s) in enumerate(itertools.pairwise(grid)):
            x, data = self.advance(Move(index, x, t, s, field, cond, layout, step))
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
    """Second order: the mean of the velocities at both ends of a step (the last step to 0 included)."""
    v = move.velocity(move.x, move.t)
    v_next = move.velocity(move.x - (move.t - move.s) * v, move.s)
    x = move.x - (move.t - move.s) * 0.5 * (v + v_next)
    return x, move.data(x, v_next, move.s)


@Sampler
def consistency(move: Move) -> tuple[Tensor, Tensor]:
    """Jump to the data with the average velocity, put fresh noise on it, jump again (consistency models, Alg. 1)."""
    data = move.x - move.t * move.velocity(move.x, move.t)
    if move.s == 0:
        return data, data
    fresh = move.step.randn_like(move.x, f"renoise/{move.index}")
    return move.step.interpolant.interpolate(data, fresh, move.times(move.s), move.layout), data


@Sampler
def jump(move: Move) -> tuple[Tensor, Tensor]:
    """x_s = x_t - (t - s) F(x_t, t, s): a two-time student (MeanFlow, shortcut models)."""
    average = move.field(move.x, move.times(move.t), move.cond, move.layout, s_B=move.times(move.s))
    return move.x - (move.t - move.s) * average, move.x - move.t * average
