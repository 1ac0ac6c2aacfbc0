"""Consistency distillation (Song et al. 2023, arXiv 2303.01469) and its phased form (PCM, arXiv 2405.18407).

Both compare the student's jump from x_t to the end of its phase with the jump from the teacher's point at t - D. The
two jumps are made from the residual shared with velocity matching: their difference is -D times it, at t - D.
"""

from __future__ import annotations

from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from fewstep.core.batch import Batch
from fewstep.core.contract import Contract
from fewstep.core.objective import Nets, NetSpec, Objective, Step, per
from fewstep.methods.distance import distance
from fewstep.methods.point import Look, Point
from fewstep.methods.residual import Derivative
from fewstep_consistency.config import BaseConfig, ConsistencyConfig, PhasedConfig

C = TypeVar("C", bound=BaseConfig)


class Jumping(Objective[C]):
    """What both objectives share: the networks, the point, the distance of two jumps."""

    def look(self) -> Look:
        """How this objective looks at a point."""
        return Look(self.config, Derivative("discrete", self.config.interval), self.config.guidance)

    def networks(self) -> dict[str, NetSpec]:
        """The student, with the EMA that predicts the target where ``target`` is "ema"."""
        return {"student": NetSpec(ema=(self.config.target_ema,) if self.config.target == "ema" else ())}

    def point(self, batch: Batch, nets: Nets, step: Step) -> Point:
        """The point of this step. With ``target`` "ema" the EMA predicts at t - D."""
        ema = self.config.target == "ema"
        return self.look().at(batch, nets, step, nets.ema("student", self.config.target_ema) if ema else None)

    def jumps(self, batch: Batch, nets: Nets, step: Step) -> tuple[Tensor, Tensor, Point]:
        """The student's jump, with its graph, the detached target, and where they were taken."""
        at = self.point(batch, nets, step)
        return *at.residual.states(at.x_t, at.span, self.config.interval), at

    def jump_distance(self, batch: Batch, nets: Nets, step: Step) -> Tensor:
        """The weighted distance of the two jumps, as a loss term."""
        jump, target, at = self.jumps(batch, nets, step)
        huber = self.config.huber if self.config.loss == "pseudo-huber" else None
        weight_B = self.weight(at.t_B - at.end_B)
        return distance(jump - target, weight_B, batch.layout, huber, self.config.reduction)

    def weight(self, span_B: Tensor) -> Tensor:
        """[B] the factor of the distance; see ``BaseConfig.weight``."""
        ones, interval = torch.ones_like(span_B), self.config.interval
        if self.config.weight == "none":
            return ones
        return ones / interval if self.config.weight == "interval" else 1 / (span_B * interval)


class Consistency(Jumping[ConsistencyConfig]):
    """|| f(x_t, t) - sg f(x_t - D vT, t - D) || with f = x_t - t F; "continuous": its limit for small D, over D."""

    Config = ConsistencyConfig
    needs: ClassVar[frozenset[str]] = frozenset({"jvp"})
    sampler = "consistency"

    def look(self) -> Look:
        return Look(self.config, Derivative(self.config.kind, self.config.interval), self.config.guidance)

    def contract(self) -> Contract:
        return Contract(sampler=self.config.sampler, rescale_t=self.config.rescale_t)

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        if self.config.kind == "discrete":
            return {"cm": self.jump_distance(batch, nets, step)}
        at = self.point(batch, nets, step)
        error = at.residual.value - at.residual.target(at.span)
        # The squared distance D^2 r^2 has its graph through span F: the gradient of its 1/D is 2 span r dF.
        weight = 1.0 if self.config.weight == "velocity" else at.span
        return {"cm": per(self.config.reduction, weight * error.square(), batch.layout)}


class PhasedConsistency(Jumping[PhasedConfig]):
    """Consistency distillation to the end of each phase; sampled by one deterministic jump a phase.

    A jump of the average velocity from one phase end to the next is an Euler step on the grid of the phase ends.
    """

    Config = PhasedConfig

    def look(self) -> Look:
        return Look(self.config, Derivative("discrete", self.config.interval), self.config.guidance, self.config.phases)

    def contract(self) -> Contract:
        return Contract(sampler="euler", steps=(self.config.phases,), rescale_t=self.config.rescale_t)

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        return {"pcm": self.jump_distance(batch, nets, step)}
