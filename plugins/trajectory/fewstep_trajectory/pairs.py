"""Knowledge distillation (KD) and reflow: learning from stored pairs of the teacher.

A pair is noise z and the sample Phi_T(z) that the guided teacher generates from it (``fewstep.core.pairs``). A run
generates the pairs before its first iteration, keeps them in the user's cache, and counts their cost in its budget.
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
    """An objective on pairs: the data set's if it provides "pairs", else the teacher's under its conditions."""

    def data(self, dataset: Dataset, teacher: Teacher) -> Dataset:
        return dataset if "pairs" in dataset.provides else TeacherPairs(self.config.pairs, dataset, teacher)

    def distance(self, error: Tensor, batch: Batch) -> Tensor:
        """The distance for this error, as a loss term."""
        ones_B = torch.ones(batch.layout.batch_size, device=error.device)
        return self.config.distance(error, ones_B, batch.layout)


class KnowledgeDistillation(FromPairs[KDConfig]):
    """|| z - F(z, 1) - Phi_T(z) ||^2: one step from the noise lands on the teacher's sample.

    Luhman and Luhman, "Knowledge Distillation in Iterative Generative Models for Improved Sampling Speed", arXiv
    2101.02388. For one-step sampling only. With too few pairs for its size, the network memorises them.
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
    """|| F(x_t, t) - (z - Phi_T(z)) ||^2 with x_t = (1 - t) Phi_T(z) + t z: a flow with straighter paths.

    Liu, Gong and Liu, "Flow Straight and Fast", arXiv 2209.03003, equation 1 on the coupling of section 2.2. The
    student is a velocity field again: it is sampled by Euler, improves with more steps, and can be the teacher for
    ``kd`` (InstaFlow).
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
