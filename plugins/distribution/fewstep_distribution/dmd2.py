"""Improved distribution matching distillation (DMD2, arXiv 2405.14867)."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from fewstep.core.batch import Batch, Condition
from fewstep.core.objective import Nets, Step
from fewstep.methods.fakes import Velocities, compare, teacher_error
from fewstep_distribution.config import AdversarialConfig, DMD2Config
from fewstep_distribution.critic import followed
from fewstep_distribution.gan import Adversarial

C = TypeVar("C", bound=AdversarialConfig)


class DistributionMatching(Adversarial[C]):
    """The gradient of KL(fakes || teacher) over all noise levels, from the two scores.

    With x_t between a sample x = x_s - s F(x_s, s) and fresh noise, the gradient with respect to x is

        g = (x0 of the critic - x0 of the teacher) / mean |x - x0 of the teacher|

    where x0 = x_t - t v is the data that a velocity v predicts at x_t, and the mean is over a sample. With
    x0 of the critic - x0 of the teacher = t (vT - v) and x - x0 of the teacher = t (vT - (eps - x)) this is
    g = (vT - v) / mean |vT - (eps - x)|, which is defined at all times.
    """

    def matching(self, x: Tensor, fakes: Batch, cond: Condition, nets: Nets, step: Step) -> dict[str, Tensor]:
        layout = fakes.layout
        with torch.no_grad():
            at = compare(self.look("dmd"), fakes, self.critic(cond, layout, nets), nets, step)
            scale_B = self.weight(at, cond, fakes, nets) / teacher_error(at.teacher, at.path, layout)
        value = followed(at, scale_B, x, layout, self.config.reduction)
        return {"dmd": value, **self.deceiving(x, fakes, cond, nets, step)}

    def weight(self, at: Velocities, cond: Condition, fakes: Batch, nets: Nets) -> Tensor:
        """[B] a further factor of the gradient, 1 here."""
        return torch.ones_like(at.t_B)


class DMD2(DistributionMatching[DMD2Config]):
    """Distribution matching with a critic that starts as the teacher and learns by flow matching on fakes, under a
    two-time-scale update (``critic_ratio``, 5 in the paper), plus adversarial terms where ``gan`` > 0."""

    Config = DMD2Config
