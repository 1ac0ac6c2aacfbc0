"""Score identity distillation (SiD, arXiv 2404.04057)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fewstep.core.batch import Batch, Condition
from fewstep.core.objective import Nets, Step, per
from fewstep.methods.fakes import compare, teacher_error
from fewstep_distribution.config import SiDConfig
from fewstep_distribution.critic import Critical, carried


class SiD(Critical[SiDConfig]):
    """The Fisher divergence of the noisy fakes from the teacher's noisy samples, as a loss of the fakes.

    With the data x0 = x_t - t v that a velocity predicts at x_t, and d = x0 of the teacher - x0 of the critic, the loss
    is

        w(t) d . [(x0 of the teacher - x) - alpha d],    w = 1 / mean |x - x0 of the teacher|, detached.

    Its gradient runs through x_t into both networks, whose weights stay. With an exact critic the mean of
    d . (x0 of the teacher - x) is the Fisher divergence E |d|^2, so alpha = 1 leaves 0 on average. Neither part sees
    that the critic follows the student; counting that in, alpha = 1/2 would have the direction of the divergence's own
    gradient. The paper finds 1.0 and 1.2 best, with a critic that lags behind.
    In velocities, d = t (v - vT) and x0 of the teacher - x = t (eps - x - vT).
    """

    Config = SiDConfig

    def matching(self, x: Tensor, fakes: Batch, cond: Condition, nets: Nets, step: Step) -> dict[str, Tensor]:
        leaf, layout = x.detach().requires_grad_(), fakes.layout
        at = compare(self.look("sid"), replace(fakes, x0=leaf), self.critic(cond, layout, nets), nets, step)
        gap = at.fake - at.teacher
        weight_B = at.t_B / teacher_error(at.teacher, at.path, layout)
        value = layout.expand(weight_B.detach(), gap) * gap * (at.path - at.teacher - self.config.alpha * gap)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return {"sid": per(self.config.reduction, value.detach() + carried(gradient, x), layout)}
