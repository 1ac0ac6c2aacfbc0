"""DMD2 for a flow map, a student with two time inputs, which samples by jumps without fresh noise in between.

Each iteration draws two neighbouring times a > b of a grid of ``steps`` steps and jumps from 1 to a, from a to b and
from b to 0, with gradients through all three (code at NVlabs/AnyFlow, which also draws the number of steps). Another
objective must keep F a flow map at all other times, as in ``meanflow+dmd2-jump``.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from fewstep.core.batch import Batch, Condition
from fewstep.core.contract import Contract
from fewstep.core.objective import Nets, Step
from fewstep.methods.fakes import roll_out
from fewstep_distribution.config import DMD2Config
from fewstep_distribution.dmd2 import DistributionMatching


class JumpDMD2(DistributionMatching[DMD2Config]):
    """Distribution matching on samples that a flow map makes in up to three jumps."""

    Config = DMD2Config
    needs: ClassVar[frozenset[str]] = frozenset({"two_time"})

    def contract(self) -> Contract:
        return Contract(sampler="jump", steps=(self.config.steps,), rescale_t=self.config.rescale_t, two_time=True)

    def generated(self, batch: Batch, cond: Condition, nets: Nets, step: Step) -> Tensor:
        return roll_out(batch, cond, nets, step, tuple(self.contract().grid(self.config.steps)))
