"""The interpolant between data and noise, and what a velocity says about its two ends.

One convention everywhere: t = 0 is data, t = 1 is noise, and a network predicts velocity. With ``sigma_min`` s
(TRELLIS: 1e-5), x_t = (1-t) x0 + (s + (1-s) t) eps and v = dx_t/dt = (1-s) eps - x0. A backbone whose network predicts
x0 or eps, or uses another time, converts in its own ``forward``.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fewstep.core.layout import Layout


@dataclass(frozen=True)
class Interpolant:
    """The rectified-flow interpolant with TRELLIS's ``sigma_min`` (0 gives the plain straight line)."""

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
