"""Knowledge distillation and reflow: what a student can learn from stored pairs of the teacher.

Both see noise z and the sample Phi_T(z) that the guided teacher makes of it (``fewstep.core.pairs``). A run makes the
pairs before its first iteration, keeps them in the user's cache, and counts what they cost in its budget.
"""

from __future__ import annotations

from typing import TypeVar, cast

import torch
from torch import Tensor

from fewstep.core.backbone import Teacher
from fewstep.core.batch import Batch
from fewstep.core.contract import Contract
from fewstep.core.dataset import Dataset
from fewstep.core.objective import Nets, Objective, Step
from fewstep.core.pairs import Pair, TeacherPairs
from fewstep_trajectory.config import KDConfig, ReflowConfig

C = TypeVar("C", KDConfig, ReflowConfig)


class FromPairs(Objective[C]):
    """An objective on pairs: those of the run's data set if it provides "pairs", else the teacher's on its samples."""

    def data(self, dataset: Dataset, teacher: Teacher) -> Dataset:
        return dataset if "pairs" in dataset.provides else TeacherPairs(self.config.pairs, dataset, teacher)

    def distance(self, error: Tensor, batch: Batch) -> Tensor:
        """The distance of the answer from its target as a loss term."""
        ones_B = torch.ones(batch.layout.batch_size, device=error.device)
        return self.config.distance(error, ones_B, batch.layout)


class KnowledgeDistillation(FromPairs[KDConfig]):
    """|| z - F(z, 1) - Phi_T(z) ||^2: one step from the noise ends where the teacher does.

    Luhman and Luhman, "Knowledge Distillation in Iterative Generative Models for Improved Sampling Speed", arXiv
    2101.02388. For one step only. With few pairs for the size of the network it learns them by heart.
    """

    Config = KDConfig

    def contract(self) -> Contract:
        return Contract(sampler="euler", steps=(1,))

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        pair, layout = cast(Pair, batch), batch.layout
        one_B = torch.ones(layout.batch_size, device=pair.noise.device)
        jump = pair.noise - nets.student(pair.noise, one_B, pair.cond, layout)
        return {"kd": self.distance(jump - pair.x0, batch)}


class Reflow(FromPairs[ReflowConfig]):
    """|| F(x_t, t) - (z - Phi_T(z)) ||^2 with x_t on the line from Phi_T(z) to z: a flow with straighter paths.

    Liu, Gong and Liu, "Flow Straight and Fast", arXiv 2209.03003, equation 1 on the coupling of section 2.2. The
    student is again a velocity field: sampled by Euler, better with more steps, and a teacher for ``kd`` (InstaFlow).
    """

    Config = ReflowConfig

    def contract(self) -> Contract:
        return Contract(sampler="euler", rescale_t=self.config.rescale_t)

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        pair, layout = cast(Pair, batch), batch.layout
        t_B = step.times(layout, self.config.t)
        x_t = step.interpolant.interpolate(pair.x0, pair.noise, t_B, layout)
        target = step.interpolant.velocity(pair.x0, pair.noise)
        return {"reflow": self.distance(nets.student(x_t, t_B, pair.cond, layout) - target, batch)}
