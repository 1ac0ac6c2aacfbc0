"""The path from data to noise and the predictions along it.

One convention everywhere: t = 0 is data, t = 1 is noise, and a network predicts velocity. With ``sigma_min`` s
(TRELLIS: 1e-5), x_t = (1-t) x0 + (s + (1-s) t) eps and v = dx_t/dt = (1-s) eps - x0. Other parametrisations are
converted at the backbone's boundary by ``to_velocity`` and ``from_foreign_time``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.layout import Layout
from fewstep.errors import unknown

PREDICTIONS = ("velocity", "x0", "eps")
FOREIGN = ("vp", "edm", "trigflow")


@dataclass(frozen=True)
class Interpolant:
    """The rectified-flow path with TRELLIS's ``sigma_min`` (0 gives the plain straight line)."""

    sigma_min: float = 0.0

    def interpolate(self, x0: Tensor, eps: Tensor, t_B: Tensor, layout: Layout) -> Tensor:
        """x_t for per-sample times [B]."""
        t = layout.expand(t_B, x0)
        return (1 - t) * x0 + (self.sigma_min + (1 - self.sigma_min) * t) * eps

    def velocity(self, x0: Tensor, eps: Tensor) -> Tensor:
        """dx_t/dt, the regression target of flow matching."""
        return (1 - self.sigma_min) * eps - x0

    def x0(self, x_t: Tensor, v: Tensor, t_B: Tensor, layout: Layout) -> Tensor:
        """The data end of the straight line through x_t with velocity v."""
        t, s = layout.expand(t_B, x_t), self.sigma_min
        return (1 - s) * x_t - (s + (1 - s) * t) * v

    def eps(self, x_t: Tensor, v: Tensor, t_B: Tensor, layout: Layout) -> Tensor:
        """The noise end of the straight line through x_t with velocity v."""
        return x_t + (1 - layout.expand(t_B, x_t)) * v

    def to_velocity(self, prediction: Tensor, kind: str, x_t: Tensor, t_B: Tensor, layout: Layout) -> Tensor:
        """Velocity from a network that predicts "x0" or "eps" (or already "velocity").

        Raises:
            FewstepError: for another ``kind``.
        """
        t, s = layout.expand(t_B, x_t), self.sigma_min
        if kind == "velocity":
            return prediction
        if kind == "x0":
            return ((1 - s) * x_t - prediction) / (s + (1 - s) * t)
        if kind == "eps":
            return (prediction - x_t) / (1 - t)
        raise unknown("prediction", kind, PREDICTIONS)


def from_foreign_time(kind: str, time: Tensor) -> tuple[Tensor, Tensor]:
    """Our t and the factor c with x_ours = c * x_foreign, for a state alpha x0 + sigma eps of another path.

    "edm": time is sigma, state x0 + sigma eps. "vp": time is alpha in (0, 1), state alpha x0 + sqrt(1-alpha^2) eps.
    "trigflow": time is the angle, state cos x0 + sin eps (data of unit scale). All lie on our line after scaling by
    1/(alpha + sigma), at t = sigma/(alpha + sigma).

    Raises:
        FewstepError: for another ``kind``.
    """
    if kind == "edm":
        alpha, sigma = torch.ones_like(time), time
    elif kind == "vp":
        alpha, sigma = time, (1 - time.square()).clamp(min=0).sqrt()
    elif kind == "trigflow":
        alpha, sigma = time.cos(), time.sin()
    else:
        raise unknown("path", kind, FOREIGN)
    return sigma / (alpha + sigma), 1 / (alpha + sigma)


def to_foreign_time(kind: str, t: Tensor) -> Tensor:
    """The inverse of ``from_foreign_time``: the other path's time for our t in [0, 1)."""
    if kind == "edm":
        return t / (1 - t)
    if kind == "vp":
        return (1 - t) / ((1 - t).square() + t.square()).sqrt()
    if kind == "trigflow":
        return torch.atan2(t, 1 - t).clamp(max=math.pi / 2)
    raise unknown("path", kind, FOREIGN)
