"""Align Your Flow (AYF, arXiv 2506.14603): distillation by the flow map's derivative in t (EMD) or in s (LMD).

With f(x_t, t, s) = x_t - (t - s) F the paper's two gradients, each weighted by 1 / |t - s|, are 2 g dF of

    g = F - vT(x_t, t) + (t - s) dF/dt              Eulerian, dF/dt along (vT, 1, 0): minus df/dt
    g = F - vT(f, s)   - (t - s) dF/ds              Lagrangian, with x_t and t fixed: df/ds - vT(f, s)

and g is normalised as in sCM. At s = 0 the Eulerian g is sCM's tangent; at s = t both are flow matching.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fewstep.core.batch import Batch
from fewstep.core.objective import Nets, Step, per
from fewstep.methods.residual import Residual
from fewstep_flowmaps.config import AYFConfig
from fewstep_flowmaps.interval import FlowMap, Interval


class AlignYourFlow(FlowMap[AYFConfig]):
    """|| F - sg(F - g / (|g| + c)) ||^2, with a warm-up of the derivative in g."""

    Config = AYFConfig
    needs: ClassVar[frozenset[str]] = frozenset({"jvp", "two_time"})

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        at = self.interval(batch, nets, step)
        residual = at.residual(step) if self.config.kind == "eulerian" else lagrangian(at, step)
        error = self.config.error(residual, at.span, batch.layout, step, self.config.derivative)
        return {"ayf": per(self.config.reduction, error.square(), batch.layout)}


def lagrangian(at: Interval, step: Step) -> Residual:
    """The residual with -dF/ds in place of dF/dt, and the teacher's velocity at the end of the jump."""

    def to_s(s_B: Tensor) -> Tensor:
        return at.student(at.x_t, at.t_B, s_B)

    value, slope = step.jvp(to_s, (at.s_B,), (-torch.ones_like(at.s_B),), at.layout)
    return Residual(value, slope, at.teacher(at.x_t - at.span * value.detach(), at.s_B))
