"""Continuous-time consistency (sCM, arXiv 2410.11081, algorithm 1) on the rectified-flow path.

With f = x_t - t F the derivative along the teacher's path is df/dt = -g,

    g = F - vT + r t dF/dt,    r from 0 to 1 over ``warmup``,

and the loss || F - sg(F) + sg(g / (|g| + c)) ||^2 has the gradient 2 g / (|g| + c) . dF. The paper takes the same
steps with f = cos(t) x_t - sin(t) F, whose g has a further term, from the derivative of cos(t), and a factor cos(t).
|g| is the norm over a sample (``norm = "sample"``, published) or its root mean square ("element", as in later code);
the latter does not shrink each element's tangent as samples grow.

The paper's learned weight w(t) is left out: normalised tangents have a size near 1 at every t, so there is little to
balance. Published: c 0.1, warm-up 10,000 iterations. With the teacher's velocity this is the paper's sCD, with
``velocity = "data"`` its sCT. Without normalisation and warm-up it is ``cm`` with ``kind = "continuous"``, ``loss =
"l2"`` and the default weight.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from fewstep.core.batch import Batch
from fewstep.core.contract import Contract
from fewstep.core.objective import Nets, Objective, Step, per
from fewstep.methods.point import Look
from fewstep.methods.residual import Derivative
from fewstep_consistency.config import SCMConfig


class ContinuousConsistency(Objective[SCMConfig]):
    """|| F - sg(F - g / (|g| + c)) ||^2; see the module."""

    Config = SCMConfig
    needs: ClassVar[frozenset[str]] = frozenset({"jvp"})
    sampler = "consistency"

    def contract(self) -> Contract:
        return Contract(sampler=self.sampler, rescale_t=self.config.rescale_t)

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        config = self.config
        at = Look(config, Derivative("continuous"), config.guidance).at(batch, nets, step)
        error = config.error(at.residual, at.span, batch.layout, step)
        return {"scm": per(config.reduction, error.square(), batch.layout)}
