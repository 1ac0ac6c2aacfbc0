"""MeanFlow (arXiv 2505.13447), distilled from a teacher or trained on data, and its improved form (arXiv 2512.02012).

Both papers write u(z, r, t) for F(x, t, s) and train on data: their v is eps - x0. Here v is the guided teacher's
velocity vT, unless ``objective.velocity = "data"``. Their squared errors are sums over a sample, here they are means: c
of the adaptive weight here corresponds to c times the number of elements there.
"""

from __future__ import annotations

from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from fewstep.core.batch import Batch
from fewstep.core.contract import Contract
from fewstep.core.layout import Layout
from fewstep.core.objective import Nets, Step
from fewstep.methods.distance import distance
from fewstep.methods.embedded import needed, promised, told
from fewstep.methods.residual import Derivative
from fewstep_flowmaps.config import AdaptiveConfig
from fewstep_flowmaps.interval import CONTINUOUS, FlowMap

A = TypeVar("A", bound=AdaptiveConfig)


class Adaptive(FlowMap[A]):
    """An objective with the adaptive weight of MeanFlow's section 4.3."""

    needs: ClassVar[frozenset[str]] = frozenset({"jvp", "two_time"})

    def derivative(self) -> Derivative:
        central = self.config.central
        return CONTINUOUS if central is None else Derivative("central", central)

    def adaptive(self, error: Tensor, t_B: Tensor, layout: Layout) -> Tensor:
        """The squared error divided by (its detached mean over the sample + c)^p, as a loss term."""
        weight_B = (layout.mean(error.detach().square()) + self.config.constant) ** -self.config.power
        if self.config.weight == "anyflow":
            weight_B = weight_B * 3.75 * t_B * (1 - t_B).clamp(min=0).sqrt()  # its mean over times is 1
        return distance(error, weight_B, layout, None, self.config.reduction)


class MeanFlow(Adaptive[AdaptiveConfig]):
    """|| F(x_t, t, s) - sg(vT - (t - s) dF/dt) ||^2, with dF/dt along (vT, 1, 0) (MeanFlow, equations 9 to 11).

    At s = 0 this is continuous velocity matching, at s = t flow matching.
    """

    Config = AdaptiveConfig

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        at = self.interval(batch, nets, step)
        residual = at.residual(step)
        return {"meanflow": self.adaptive(residual.value - residual.target(at.span), at.t_B, batch.layout)}


class ImprovedMeanFlow(Adaptive[AdaptiveConfig]):
    """|| F(x_t, t, s) + (t - s) sg(dF/dt) - vT ||^2, with dF/dt along the student's own velocity (F(x_t, t, t), 1, 0).

    When training on data, this keeps the variance of eps - x0 out of the derivative. As in the paper, the student takes
    the guidance strength as an input if ``guidance`` is a list or a range; a number is baked in.
    """

    Config = AdaptiveConfig

    def __init__(self, config: AdaptiveConfig) -> None:
        super().__init__(config)
        self.needs = type(self).needs | needed(config.guidance)  # type: ignore[misc]

    def contract(self) -> Contract:
        return promised(super().contract(), self.config.guidance)

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        at = self.interval(told(self.look(), batch, step), nets, step)
        with torch.no_grad():
            own = at.student(at.x_t, at.t_B, at.t_B)
        error = at.residual(step, own).instantaneous(at.span) - at.velocity
        return {"imeanflow": self.adaptive(error, at.t_B, batch.layout)}
