"""Base of the objectives that compare two jumps: networks, noisy samples, distance and weight.

One is the student's jump from x_t to the end of its phase, the other starts at the teacher's Euler step to t - D. Both
are computed from the residual r shared with velocity matching: their difference is -D r, with t - D in place of t as
the factor of dF/dt (``fewstep.methods.residual``).
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from fewstep.core.batch import Batch
from fewstep.core.contract import Contract
from fewstep.core.layout import Layout
from fewstep.core.objective import Nets, NetSpec, Objective, Step
from fewstep.methods.distance import distance
from fewstep.methods.point import Look, Point
from fewstep.methods.residual import Derivative
from fewstep_consistency.config import BaseConfig

C = TypeVar("C", bound=BaseConfig)


class Jumping(Objective[C]):
    """w || f(x_t, t) - sg f(x_t - D vT, t - D) || with f(x_t, t) = x_t - (t - end) F."""

    sampler = "consistency"

    def contract(self) -> Contract:
        return Contract(sampler=self.sampler, rescale_t=self.config.rescale_t)

    def look(self, step: Step) -> Look:
        """The settings of this objective's evaluation at noisy samples."""
        return Look(self.config, Derivative("discrete", self.config.interval), self.config.guidance)

    def networks(self) -> dict[str, NetSpec]:
        return self.config.networks()

    def point(self, batch: Batch, nets: Nets, step: Step) -> Point:
        """Draws this step's noisy samples and evaluates student and teacher there."""
        return self.look(step).at(batch, nets, step, self.config.network(nets))

    def jumps(self, batch: Batch, nets: Nets, step: Step) -> tuple[Tensor, Tensor, Point]:
        """The student's jump with its graph, the detached target, and the point both belong to."""
        at = self.point(batch, nets, step)
        return *states(at, batch.layout), at

    def jump_distance(self, batch: Batch, nets: Nets, step: Step) -> Tensor:
        """The weighted distance between the two jumps, as a loss term."""
        return self.distance_at(self.point(batch, nets, step), batch.layout)

    def distance_at(self, at: Point, layout: Layout, factor_B: float | Tensor = 1.0) -> Tensor:
        """The weighted distance between the two jumps at a point; ``factor_B`` [B] is a further weight."""
        jump, target = states(at, layout)
        huber = self.config.huber if self.config.loss == "pseudo-huber" else None
        return distance(jump - target, factor_B * self.weight(at), layout, huber, self.config.reduction)

    def weight(self, at: Point) -> Tensor:
        """[B] factors of the distance; see ``BaseConfig.weight``."""
        if self.config.weight == "none":
            return torch.ones_like(at.interval_B)
        return 1 / at.interval_B / (1 if self.config.weight == "interval" else at.t_B - at.end_B)


def states(at: Point, layout: Layout) -> tuple[Tensor, Tensor]:
    """The student's jump with its graph, and the detached target."""
    return at.residual.states(at.x_t, at.span, layout.expand(at.interval_B, at.x_t))
