"""A student's own samples ("fakes"), and the velocity of their distribution, learnt by flow matching on them.

The velocity v of a distribution and the score of its noisy samples determine each other, score =
-(x_t + (1 - t) v) / t, so the difference of two velocities is that of two scores times -t / (1 - t). Methods that
compare the distribution of fakes with the teacher's compare their velocities at noisy fakes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor

from fewstep.core.batch import Batch, Condition
from fewstep.core.layout import Layout
from fewstep.core.objective import Nets, Reduction, Step, per
from fewstep.core.samplers import consistency
from fewstep.methods.point import Look

Velocity = Callable[[Tensor, Tensor], Tensor]  # (x_t, t_B) -> v, condition and layout bound


def generate(
    batch: Batch, cond: Condition, nets: Nets, step: Step, grid: tuple[float, ...] = (1.0, 0.0)
) -> tuple[Tensor, Tensor]:
    """Fakes x = x_t - t F(x_t, t), and F, both with the student's graph and shaped like ``batch.x0``.

    With more than one step, each iteration draws a time of the grid, and the sampler "consistency" carries noise down
    to it without a graph. So the student is trained on the states that it meets when it is sampled (DMD2's backward
    simulation, arXiv 2405.14867).

    Args:
        batch: gives the shape of the noise and the layout.
        cond: the condition of the fakes.
        grid: times of the student's sampler, from 1 to 0.
    """
    jump = int(step.choice(tuple(range(len(grid) - 1)), "jump"))
    x_t, t = step.randn_like(batch.x0, "noise_fake"), grid[jump]
    if jump:
        x_t = consistency(nets.student, x_t, cond, batch.layout, list(grid[: jump + 1]), step)
    t_B = torch.full((batch.layout.batch_size,), t, device=x_t.device, dtype=x_t.dtype)
    average = cast(Tensor, nets.student(x_t, t_B, cond, batch.layout)).to(x_t.dtype)
    return x_t - t * average, average


def roll_out(batch: Batch, cond: Condition, nets: Nets, step: Step, grid: tuple[float, ...]) -> Tensor:
    """Fakes of a two-time student by jumps from noise to a time of the grid, from there to the next, and then to the
    data, all with the student's graph (AnyFlow's flow-map backward simulation). Each iteration draws the time; jumps of
    length 0 are left out. For the arguments see ``generate``.
    """
    x, jump = step.randn_like(batch.x0, "noise_fake"), int(step.choice(tuple(range(len(grid) - 1)), "jump"))
    times = dict.fromkeys((grid[0], grid[jump], grid[jump + 1], grid[-1]))
    for t, s in pairwise(times):
        t_B, s_B = (torch.full((batch.layout.batch_size,), at, device=x.device, dtype=x.dtype) for at in (t, s))
        x = x - (t - s) * cast(Tensor, nets.student(x, t_B, cond, batch.layout, s_B=s_B)).to(x.dtype)
    return x


@dataclass(frozen=True)
class Velocities:
    """Velocities at noisy fakes ``x_t`` and times ``t_B`` [B]: that of the fakes' distribution (``fake``), the
    teacher's, and that of the straight path from the fake to the noise (``path``)."""

    x_t: Tensor
    fake: Tensor
    teacher: Tensor
    path: Tensor
    t_B: Tensor


def compare(look: Look, fakes: Batch, velocity: Velocity, nets: Nets, step: Step) -> Velocities:
    """The velocities at noisy fakes. Where gradients are enabled, all of them depend on ``fakes.x0`` by a graph.

    Args:
        look: draws times and noise, and has the teacher's guidance.
        fakes: the student's samples as ``x0``, with the condition that the teacher sees.
        velocity: the velocity of the fakes' distribution, (x_t, t_B) -> v.
    """
    x_t, t_B, noise = look.noisy(fakes, step)
    fake = velocity(x_t, t_B).to(x_t.dtype)
    teacher = look.velocity(fakes, noise, x_t, t_B, nets, step).to(x_t.dtype)
    return Velocities(x_t, fake, teacher, step.interpolant.velocity(fakes.x0, noise), t_B)


def fit(velocity: Tensor, fakes: Batch, noise: Tensor, step: Step, reduction: Reduction) -> Tensor:
    """Flow matching on fakes as a loss term: (v - (eps - x))^2 for ``velocity`` v at the fakes with this noise."""
    error = velocity.to(noise.dtype) - step.interpolant.velocity(fakes.x0, noise)
    return per(reduction, error.square(), fakes.layout)


def teacher_error(teacher: Tensor, path: Tensor, layout: Layout) -> Tensor:
    """[B] mean |vT - (eps - x)| over the elements of a sample, at least 1e-6, by which DMD2 and SiD scale gradients.

    They write mean |x - the teacher's x0|, which is t times as large; their numerators have the same factor t.
    """
    return layout.mean((teacher - path).abs()).clamp(min=1e-6)
