"""Easy Consistency Tuning (ECT, arXiv 2406.14548) and improved consistency training (iCT, arXiv 2310.14189).

Consistency distillation whose interval D shrinks in stages over the run. At first the target is nearly the teacher's
prediction of the data; at the end it is near the continuous limit:

    || f(x_t, t) - sg f(x_t - D vT, t - D) ||    with    D = interval / q^stage    (``shape`` "constant", iCT), or
    D = t min(1, n(t) interval / q^stage),  n(t) = 1 + 8 sigmoid(-t / (1 - t))     (``shape`` "level", ECT)

ECT writes 1 - r / t = n(t) / q^(1 + stage), where t and r are EDM's noise levels. Here n takes the noise level
t / (1 - t), but D / t is relative to the time: a ratio of noise levels would make D vanish at t = 1.

Published: ``velocity = "data"`` (no teacher; the same noise at both times), ``weight = "interval"``, t logit-normal
(-1.1, 2). ECT: interval 1/2, q 2, 8 stages, or 1/256 in one stage. iCT: interval 1/10, q 2, 8 stages, on EDM's
non-uniform times. With one stage and ``shape = "constant"`` this is ``cm``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.core.batch import Batch
from fewstep.core.objective import Nets, Step
from fewstep.methods.point import Look
from fewstep.methods.residual import Derivative
from fewstep_consistency.config import ECTConfig
from fewstep_consistency.jumping import Jumping


class ECT(Jumping[ECTConfig]):
    """Consistency distillation or training with an interval that shrinks over the run."""

    Config = ECTConfig

    def look(self, step: Step) -> Look:
        shrunk = self.config.interval / self.config.q ** int(self.config.stages * step.progress)
        sigma_min = step.interpolant.sigma_min

        def interval(t_B: Tensor) -> Tensor:
            n_B = 1 + 8 * torch.sigmoid(-t_B / (1 - t_B))
            return torch.minimum(t_B * n_B * shrunk, t_B - sigma_min)

        constant = self.config.shape == "constant"
        return Look(self.config, Derivative("discrete", shrunk if constant else interval), self.config.guidance)

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        return {"ect": self.jump_distance(batch, nets, step)}
