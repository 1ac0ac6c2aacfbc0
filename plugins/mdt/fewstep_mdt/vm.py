"""Velocity matching (VM): the student's own velocity F + t dF/dt is regressed on the teacher's."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fewstep.core.batch import Batch
from fewstep.core.contract import Contract
from fewstep.core.objective import Nets, NetSpec, Objective, Step
from fewstep.methods.distance import distance
from fewstep_mdt.config import VMConfig
from fewstep_mdt.match import Targets, contract, match


class VelocityMatching(Objective[VMConfig]):
    """lambda || F(x_t, t) + t sg(dF/dt) - vT(x_t, t) ||^2 (MDT-dist, arXiv 2509.04406, velocity matching).

    With ``difference`` "euler" and ``loss`` "pseudo-huber" the gradient is D times that of ``cm`` with weight
    "velocity" and D times this ``huber``.
    """

    Config = VMConfig
    needs: ClassVar[frozenset[str]] = frozenset({"jvp"})

    def networks(self) -> dict[str, NetSpec]:
        return self.config.networks()

    def contract(self) -> Contract:
        return contract(self.config)

    def targets(self, batch: Batch, nets: Nets, step: Step) -> Targets:
        """Prediction with its graph, and detached target."""
        return match(self.config, batch, nets, step, "vm")

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        if self.config.lambda_vm == 0:
            return {}
        found = self.targets(batch, nets, step)
        huber = self.config.huber if self.config.loss == "pseudo-huber" else None
        error, weight_B = found.v_pred - found.v_tgt, torch.full_like(found.t_B, self.config.lambda_vm)
        return {"vm": distance(error, weight_B, batch.layout, huber, self.config.reduction)}
