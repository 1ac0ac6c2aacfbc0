"""f-distill (arXiv 2502.15681): distribution matching for any f-divergence."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fewstep.core.batch import Batch, Condition
from fewstep.core.objective import Nets
from fewstep.methods.fakes import Velocities
from fewstep_distribution.config import FDistillConfig
from fewstep_distribution.dmd2 import DistributionMatching

# h(r) = r^2 f''(r) of the divergence E_fakes[f(r)], r = p_data / p_fakes, up to a constant. Reverse KL (h = 1) is DMD2.
WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "forward-kl": lambda r: r,
    "jensen-shannon": lambda r: r / (1 + r),
    "softened-reverse-kl": lambda r: 1 / (1 + r),
    "hellinger": lambda r: r.sqrt(),
    "jeffreys": lambda r: 1 + r,
}


class FDistill(DistributionMatching[FDistillConfig]):
    """DMD2's gradient times h(r), with the density ratio r = exp(logit) from the adversarial head at the noisy sample.

    Forward KL and Jeffreys cover modes better than reverse KL, at the cost of a larger variance. The ratio is clipped
    to ``clip``. The published code also divides h by its mean over the batch; here a sample's gradient does not depend
    on the other samples.
    """

    Config = FDistillConfig

    @property
    def has_head(self) -> bool:
        return True

    def weight(self, at: Velocities, cond: Condition, fakes: Batch, nets: Nets) -> Tensor:
        _, logit_B = self.judged(at.x_t, at.t_B, cond, fakes.layout, nets)
        return WEIGHTS[self.config.divergence](logit_B.exp().clamp(*self.config.clip)).to(at.t_B)
