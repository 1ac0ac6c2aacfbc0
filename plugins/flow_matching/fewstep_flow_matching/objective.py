"""Flow matching as an objective: a teacher is trained by the same engine that distils."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from fewstep.config.base import Strict
from fewstep.core.batch import Batch
from fewstep.core.contract import Contract
from fewstep.core.objective import Nets, Objective, Step
from fewstep.core.times import TimeSampler
from fewstep.methods.point import UNIFORM


class FlowMatchingConfig(Strict):
    """Keys of flow matching."""

    p_uncond: float = Field(0.1, ge=0, le=1, description="share of samples trained without their condition")
    t: TimeSampler = Field(default_factory=TimeSampler, description="distribution of the training time")


class FlowMatching(Objective[FlowMatchingConfig]):
    """|| v(x_t, t) - ((1 - sigma_min) eps - x0) ||^2, with condition dropout for CFG.

    The minimiser is the conditional mean of that velocity given x_t. Lipman et al. 2023, arXiv 2210.02747, equation 23
    with time reversed. This is TRELLIS's own training loss.
    """

    Config = FlowMatchingConfig
    teaches = True

    def contract(self) -> Contract:
        """A teacher is sampled in many steps."""
        return Contract(steps=(25,))

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        t_B = step.times(batch.layout, self.config.t)
        noise = step.randn_like(batch.x0, "noise")
        x_t = step.interpolant.interpolate(batch.x0, noise, t_B, batch.layout)
        cond = batch.cond.dropped(step.times(batch.layout, UNIFORM, "drop") < self.config.p_uncond)
        error = nets.student(x_t, t_B, cond, batch.layout) - step.interpolant.velocity(batch.x0, noise)
        return {"flow": error.square()}
