"""Latent Consistency Models (LCM, arXiv 2310.04378): consistency distillation of the guided teacher, in wide steps.

    || f(x_t, t) - sg(EMA f)(x_t - D vT, t - D) ||,    D = k / N,  t one of D, D + 1/N, ..., 1

with vT the teacher's guided velocity, N equal steps of time and a skip of k steps. The paper's DDIM step is an Euler
step along a rectified flow. ``interval`` is k / N and ``t.points`` is N - k + 1. Published: N = 1000 and k = 20 in the
paper; N = 50, k = 1 and an EMA of rate 0.95 in the code.

The paper draws the guidance strength w from [2, 14] for each sample and gives it to the student as an input. Here
``guidance = {low = 2, high = 14}``, or a list, does so with one w per micro-batch. A number, a ramp, or the teacher's
own guidance is baked in instead.
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
    """Consistency distillation as in LCM, with the guidance strength as an optional input."""

    Config = LCMConfig

    def __init__(self, config: LCMConfig) -> None:
        super().__init__(config)
        self.needs = type(self).needs | needed(config.guidance)  # type: ignore[misc]

    def contract(self) -> Contract:
        return promised(super().contract(), self.config.guidance)

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        return {"lcm": self.jump_distance(told(self.look(step), batch, step), nets, step)}
