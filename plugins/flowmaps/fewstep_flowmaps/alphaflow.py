"""AlphaFlow (arXiv 2510.20771): alpha interpolates from trajectory flow matching (1) to MeanFlow (0)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewstep.core.batch import Batch
from fewstep.core.objective import Nets, Step
from fewstep_flowmaps.config import AlphaFlowConfig
from fewstep_flowmaps.interval import Interval
from fewstep_flowmaps.meanflow import Adaptive


class AlphaFlow(Adaptive[AlphaFlowConfig]):
    """1/a || F(x_t, t, s) - sg(a vT + (1 - a) F(x_m, m, s)) ||^2, with m = t - a (t - s), x_m = x_t - (t - m) vT.

    a = 1 is || F - vT ||^2 for every s. a = 1/2, with the student's own F for the first half in place of vT, would be a
    shortcut model. For a to 0 the error divided by a becomes MeanFlow's error, which is used once the schedule reaches
    0; the adaptive weight is computed from the error divided by a, so that it converges as well.
    """

    Config = AlphaFlowConfig

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        at, alpha = self.interval(batch, nets, step), self.alpha(step)
        if alpha == 0:
            residual = at.residual(step)
            return {"alphaflow": self.adaptive(residual.value - residual.target(at.span), at.t_B, batch.layout)}
        target = at.velocity if alpha == 1 else alpha * at.velocity + (1 - alpha) * self.rest(at, alpha)
        error = (at.student(at.x_t, at.t_B, at.s_B) - target) / alpha
        return {"alphaflow": alpha * self.adaptive(error, at.t_B, batch.layout)}

    @torch.no_grad()
    def rest(self, at: Interval, alpha: float) -> Tensor:
        """F(x_m, m, s), after an Euler step of the teacher over a fraction alpha of the interval."""
        m_B = at.t_B.double() - alpha * (at.t_B.double() - at.s_B.double())
        return at.student(at.x_t - alpha * at.span * at.velocity, m_B, at.s_B)

    def alpha(self, step: Step) -> float:
        """alpha at this iteration. It depends on the length of the run, which therefore cannot change on resume."""
        config = self.config
        progress = (step.index / max(1, step.total - 1) - config.start) / (config.end - config.start)
        alpha = 1 / (1 + math.exp(min(700.0, config.steepness * (progress - 0.5))))
        if alpha < config.clamp:
            return 0.0
        return 1.0 if alpha > 1 - config.clamp else alpha
