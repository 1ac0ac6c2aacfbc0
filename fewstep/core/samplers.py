"""Samplers: from noise to data along a grid of times. Functions over a field, without hidden state."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from fewstep.core.backbone import VelocityField
from fewstep.core.batch import Condition
from fewstep.core.layout import Layout
from fewstep.core.objective import Step

OnStep = Callable[[int, Tensor, Tensor], None]  # (step, state after it, predicted data)


class Sampler(Protocol):
    """Carries ``noise`` from grid[0] = 1 to grid[-1] = 0."""

    def __call__(
        self,
        field: VelocityField,
        noise: Tensor,
        cond: Condition,
        layout: Layout,
        grid: list[float],
        step: Step,
        on_step: OnStep | None = None,
    ) -> Tensor: ...


def times(t: float, layout: Layout, like: Tensor) -> Tensor:
    """[B] copies of t in float64: a backbone that scales time rounds once, after scaling."""
    return torch.full((layout.batch_size,), t, dtype=torch.float64, device=like.device)


def _report(on_step: OnStep | None, i: int, x: Tensor, data: Callable[[], Tensor]) -> None:
    if on_step is not None:
        on_step(i, x, data())


@torch.no_grad()
def euler(
    field: VelocityField,
    noise: Tensor,
    cond: Condition,
    layout: Layout,
    grid: list[float],
    step: Step,
    on_step: OnStep | None = None,
) -> Tensor:
    """x_s = x_t - (t - s) v(x_t, t): for a teacher its ODE, for a one-time student its average velocity."""
    x = noise
    for i, (t, s) in enumerate(itertools.pairwise(grid)):
        t_B, before = times(t, layout, x), x
        v = field(x, t_B, cond, layout)
        x = x - (t - s) * v
        _report(on_step, i, x, lambda b=before, v=v, t_B=t_B: step.interpolant.x0(b, v, t_B, layout))  # type: ignore[misc]
    return x


@torch.no_grad()
def heun(
    field: VelocityField,
    noise: Tensor,
    cond: Condition,
    layout: Layout,
    grid: list[float],
    step: Step,
    on_step: OnStep | None = None,
) -> Tensor:
    """Second order: the mean of the velocities at both ends of a step (the last step to 0 included)."""
    x = noise
    for i, (t, s) in enumerate(itertools.pairwise(grid)):
        t_B, s_B = times(t, layout, x), times(s, layout, x)
        v = field(x, t_B, cond, layout)
        v_next = field(x - (t - s) * v, s_B, cond, layout)
        x = x - (t - s) * 0.5 * (v + v_next)
        _report(on_step, i, x, lambda x=x, v=v_next, s_B=s_B: step.interpolant.x0(x, v, s_B, layout))  # type: ignore[misc]
    return x


@torch.no_grad()
def consistency(
    field: VelocityField,
    noise: Tensor,
    cond: Condition,
    layout: Layout,
    grid: list[float],
    step: Step,
    on_step: OnStep | None = None,
) -> Tensor:
    """Jump to the data with the average velocity, put fresh noise on it, jump again (consistency models, Alg. 1)."""
    x = noise
    for i, (t, s) in enumerate(itertools.pairwise(grid)):
        data = x - t * field(x, times(t, layout, x), cond, layout)
        fresh = step.randn_like(x, f"renoise/{i}")
        x = step.interpolant.interpolate(data, fresh, times(s, layout, x), layout) if s > 0 else data
        _report(on_step, i, x, lambda data=data: data)  # type: ignore[misc]
    return x


@torch.no_grad()
def jump(
    field: VelocityField,
    noise: Tensor,
    cond: Condition,
    layout: Layout,
    grid: list[float],
    step: Step,
    on_step: OnStep | None = None,
) -> Tensor:
    """x_s = x_t - (t - s) F(x_t, t, s): a two-time student (MeanFlow, shortcut models)."""
    x = noise
    for i, (t, s) in enumerate(itertools.pairwise(grid)):
        average = field(x, times(t, layout, x), cond, layout, s_B=times(s, layout, x))
        data = x - t * average
        x = x - (t - s) * average
        _report(on_step, i, x, lambda data=data: data)  # type: ignore[misc]
    return x
