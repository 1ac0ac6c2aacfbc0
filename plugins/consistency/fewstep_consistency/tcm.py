"""Truncated Consistency Models (TCM, arXiv 2410.14895): the student learns only the times from t' to 1.

    || f(x_t, t) - sg h(x_t - D vT, t - D) ||,    h = f from t' on, and the first network's jump below t'

The student spends no capacity on small noise levels. The first network supplies the boundary condition at t', without
which any constant f would be consistent. A share of the samples is placed at t' itself; their mean loss has a weight of
its own.

The paper trains the first network beforehand, a consistency model of all times, and starts the student from it:
``train.start`` names such a run. Here the first network is trained along with the student, at the times up to t', where
alone it is evaluated, so that a run can also start from the teacher's weights. An iteration costs twice that of ``cm``.
Published: t' at noise level 1 (t = 1/2), share 0.25, weight 0.1. A student that starts from the teacher still has to
learn the boundary; on the toy this took weight 1. The student must not be evaluated below t', so its contract lists
only the step counts that stay above.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.core.batch import Batch, Condition
from fewstep.core.contract import Contract
from fewstep.core.layout import Layout
from fewstep.core.objective import Nets, NetSpec, Phase, Step
from fewstep.methods.point import UNIFORM
from fewstep_consistency.config import TCMConfig
from fewstep_consistency.jumping import Jumping


class TruncatedConsistency(Jumping[TCMConfig]):
    """Consistency distillation of the times from t' on, with a first network for those below."""

    Config = TCMConfig

    def networks(self) -> dict[str, NetSpec]:
        return super().networks() | {"first": NetSpec(init="student")}

    def phase(self, step: int) -> Phase:
        return Phase(("student", "first"))

    def contract(self) -> Contract:
        full = super().contract()
        steps = tuple(n for n in full.steps if full.grid(n)[-2] >= self.config.boundary)
        return full.model_copy(update={"steps": steps})

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        layout, look, boundary = batch.layout, self.look(step), self.config.boundary
        later = self.config.network(nets)

        def previous(x: Tensor, t_B: Tensor, cond: Condition, layout: Layout) -> Tensor:
            is_late = layout.expand((t_B >= boundary).to(x.dtype), x) > 0
            return torch.where(is_late, later(x, t_B, cond, layout), nets.first(x, t_B, cond, layout))

        share, u_B = self.config.boundary_share, step.times(layout, self.config.t)
        lies_B = (step.times(layout, UNIFORM, "boundary") < share).to(u_B.dtype)  # 1 at the boundary, else 0
        late_B = boundary + (1 - boundary) * (1 - lies_B) * u_B
        at_late = look.at(batch, nets, step, previous, late_B)
        factor_B = lies_B * self.config.boundary_weight / share + (1 - lies_B) / (1 - share)

        lowest = step.interpolant.sigma_min + self.config.interval
        first = Nets({"student": nets.first, "teacher": nets.teacher}, {})
        at_early = look.at(batch, first, step, t_B=lowest + (boundary - lowest) * u_B)
        return {"tcm": self.distance_at(at_late, layout, factor_B), "first": self.distance_at(at_early, layout)}
