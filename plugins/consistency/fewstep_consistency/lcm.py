"""Latent Consistency Models (LCM, arXiv 2310.04378): consistency distillation on the guided path, in wide steps.

    || f(x_t, t) - sg(EMA f)(x_t - D vT, t - D) ||,    D = k / N,  t one of D, D + 1/N, ..., 1

with vT the teacher's guided velocity, N equal times and a skip of k. An Euler step along a rectified flow is the
paper's DDIM step. ``interval`` is k / N and ``t.points`` N - k + 1. Published: N = 1000 and k = 20; the published
code has N = 50, k = 1 and an EMA of rate 0.95.

The paper draws the guidance strength w from [2, 14] and gives it to the student as an input: ``guidance = {low = 2,
high = 14}``, or a list to draw from; here one w an iteration. A number, a ramp, or the teacher's own is baked in.
"""

from __future__ import annotations

from torch import Tensor

from fewstep.core.batch import Batch
from fewstep.core.contract import Contract
from fewstep.core.objective import Nets, Step
from fewstep.methods.embedded import needed, promised, told
from fewstep_consistency.config import LCMConfig
from fewstep_consistency.jumping import Jumping


class LatentConsistency(Jumping[LCMConfig]):
    """Consistency distillation with the settings of LCM."""

    Config = LCMConfig

    def __init__(self, config: LCMConfig) -> None:
        super().__init__(config)
        self.needs = type(self).needs | needed(config.guidance)  # type: ignore[misc]

    def contract(self) -> Contract:
        return promised(super().contract(), self.config.guidance)

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        return {"lcm": self.jump_distance(told(self.look(step), batch, step), nets, step)}
