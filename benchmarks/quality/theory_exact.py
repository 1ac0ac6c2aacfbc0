"""What theory predicts for students of an exact teacher: the maps that methods converge to, and velocities of samples.

z is noise, Phi(z) the exact flow's image of z, v the teacher's velocity, F the student's average velocity, D the
interval of the finite difference, f = x - t F the data that the student predicts.

Consistency distillation makes f(x, t) = f(x - D v, t - D): from t = 1 this is Euler's method with step D.

Velocity matching solves F(x, t) + t [F(x, t) - F(x - D v, t - D)] / D = v(x, t). For f this reads

    f(x, t) = f_before + D^2 / (t^2 - D^2) [f_before - (x - t v)],    f_before = f(x - D v, t - D),

that is Euler's method plus a sum, which for small D becomes D times the integral of (x0 - x + t v) / t^2 over t. As
d(x / t)/dt = (t v - x) / t^2 and v(x0, 0) = -x0, this integral from 0 to 1 is z. Hence, to first order in D,

    f(z, 1) - Phi(z) = (Euler's error with step D) + D z.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.core.batch import Condition
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense
from fewstep.core.mixture import Mixture

Velocity = Callable[[Tensor, Tensor], Tensor]  # (x [N, F], t_B [N]) -> v


@torch.no_grad()
def limits(velocity: Velocity, noise: Tensor, interval: float) -> tuple[Tensor, Tensor]:
    """Where consistency distillation and velocity matching with this interval carry the noise, each [N, F].

    The recursion of velocity matching needs F at t = 0, which its loss never trains; the teacher's velocity takes its
    place. The student's actual F there changes the result only to second order in D.
    """
    x, ones, velocities = noise, torch.ones(len(noise), dtype=torch.float64), []
    times = [1 - i * interval for i in range(round(1 / interval))]
    for t in times:
        velocities.append(velocity(x, t * ones))
        x = x - interval * velocities[-1]
    average = velocity(x, 0 * ones)
    for t, v in zip(reversed(times), reversed(velocities), strict=True):
        average = (interval * v + t * average) / (t + interval)
    return x, noise - average


def slope(measured: Tensor, predicted: Tensor) -> float:
    """The least-squares factor between two fields [N, P]: 1 where the prediction explains what was measured."""
    return float((measured * predicted).sum() / predicted.square().sum())


def rms(x: Tensor) -> float:
    """Root mean square of all elements."""
    return float(x.square().mean().sqrt())


def cosine(a: Tensor, b: Tensor) -> float:
    """The cosine of two fields [N, P], each taken as one vector."""
    return float((a * b).sum() / (a.norm() * b.norm()))


@torch.no_grad()
def velocity_of(samples: Tensor, labels: Tensor, std: float, x_t: Tensor, t_B: Tensor, cond: Condition) -> Tensor:
    """[N, P] E[eps - x0 | x_t] where x0 is one of ``samples`` [M, P] of the same class with noise of ``std`` on it."""
    return Mixture(samples, std, labels).velocity(Interpolant(), x_t, Dense(len(x_t)).expand(t_B, x_t), cond.tokens)
