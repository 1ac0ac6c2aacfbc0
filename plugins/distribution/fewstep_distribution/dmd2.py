"""Improved distribution matching distillation (DMD2, arXiv 2405.14867)."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.core.batch import Batch
from fewstep.core.objective import Nets, Step, per
from fewstep.methods.fakes import Velocity, compare, teacher_error
from fewstep_distribution.config import DMD2Config
from fewstep_distribution.critic import Critical, carried


class DMD2(Critical[DMD2Config]):
    """The gradient of KL(fakes || teacher) over all noise levels, by the scores of both.

    With x_t between a sample x = x_s - s F(x_s, s) and fresh noise, the gradient with respect to x is

        g = (x0 of the critic - x0 of the teacher) / mean |x - x0 of the teacher|

    with x0 = x_t - t v the data that a velocity v predicts at x_t; the mean is over a sample. As x0 differs by -t v and
    x - x0 = t (vT - (eps - x)), this is (vT - v) / mean |vT - (eps - x)|, which is defined at all times. The reported
    value is |g|^2 / 2. The critic starts as the teacher, learns by flow matching on fakes, and is updated
    ``critic_ratio`` times for each update of the student (5 in the paper).
    """

    Config = DMD2Config

    def matching(self, x: Tensor, fakes: Batch, critic: Velocity, nets: Nets, step: Step) -> dict[str, Tensor]:
        with torch.no_grad():
            at = compare(self.look("dmd"), fakes, critic, nets, step)
            gradient = (at.teacher - at.fake) / fakes.layout.expand(
                teacher_error(at.teacher, at.path, fakes.layout), at.fake
            )
        return {"dmd": per(self.config.reduction, carried(0.5 * gradient.square(), gradient, x), fakes.layout)}
