"""Consistency distillation (Song et al. 2023, arXiv 2303.01469) and its phased form (PCM, arXiv 2405.18407)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from fewstep.core.batch import Batch
from fewstep.core.contract import Contract
from fewstep.core.objective import Nets, Step, per
from fewstep.methods.point import Look
from fewstep.methods.residual import Derivative
from fewstep_consistency.config import ConsistencyConfig, PhasedConfig
from fewstep_consistency.jumping import Jumping


class Consistency(Jumping[ConsistencyConfig]):
    """|| f(x_t, t) - sg f(x_t - D vT, t - D) || with f(x_t, t) = x_t - t F(x_t, t).

    Kind "continuous" takes the gradient of the squared distance divided by D in the limit of small D.
    """

    Config = ConsistencyConfig
    needs: ClassVar[frozenset[str]] = frozenset({"jvp"})

    def look(self, step: Step) -> Look:
        return Look(self.config, Derivative(self.config.kind, self.config.interval), self.config.guidance)

    def contract(self) -> Contract:
        noise = self.config.noise if self.config.sampler == "consistency" and self.config.noise < 1 else None
        return Contract(sampler=self.config.sampler, noise=noise, rescale_t=self.config.rescale_t)

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        if self.config.kind == "discrete":
            return {"cm": self.jump_distance(batch, nets, step)}
        at = self.point(batch, nets, step)
        error = at.residual.value - at.residual.target(at.span)
        # The squared distance is D^2 r^2 and its graph runs through span F: divided by D, its gradient is 2 span r dF.
        weight = 1.0 if self.config.weight == "velocity" else at.span
        return {"cm": per(self.config.reduction, weight * error.square(), batch.layout)}


class PhasedConsistency(Jumping[PhasedConfig]):
    """Consistency distillation to the end of each phase; sampled by one deterministic jump per phase.

    A jump by the average velocity from one phase end to the next is an Euler step on the grid of phase ends.
    """

    Config = PhasedConfig

    def look(self, step: Step) -> Look:
        return Look(self.config, Derivative("discrete", self.config.interval), self.config.guidance, self.config.phases)

    def contract(self) -> Contract:
        return Contract(sampler="euler", steps=(self.config.phases,), rescale_t=self.config.rescale_t)

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        return {"pcm": self.jump_distance(batch, nets, step)}
