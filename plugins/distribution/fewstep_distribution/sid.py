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
    """The Fisher divergence between noisy fakes and the teacher's noisy samples, as a loss on the fakes x.

    With x0 = x_t - t v the data that a velocity v predicts at x_t, and d = x0 of the teacher - x0 of the critic, the
    loss is

        w(t) d . [(x0 of the teacher - x) - alpha d],    w = 1 / mean |x - x0 of the teacher|, detached.

    Its gradient runs through x_t and both networks to x; their weights are not updated by it. With an exact critic the
    mean of d . (x0 of the teacher - x) is the Fisher divergence E |d|^2, so that the loss is 0 on average for
    alpha = 1. Neither part accounts for the critic's own dependence on the student; with it, alpha = 1/2 would give the
    direction of the divergence's gradient. The paper finds 1.0 and 1.2 best, with a critic that lags behind.
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
