"""Velocity distillation, and the published sum of both terms."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, cast

import torch
from torch import Tensor

from fewstep.core.batch import Batch
from fewstep.core.compose import Sum
from fewstep.core.contract import Contract
from fewstep.core.objective import Nets, Objective, Step, per
from fewstep.methods.point import dropped
from fewstep_mdt.config import MDTConfig
from fewstep_mdt.match import Targets, contract, match
from fewstep_mdt.vm import VelocityMatching


class VelocityDistillation(Objective[MDTConfig]):
    """Score distillation whose fake score is the student's own velocity (MDT-dist, velocity distillation).

    With x' = z' - F(z', 1) and x'_t between x' and fresh noise, the gradient is 2 lambda (u - vT)(x'_t, t) . dF(z', 1)
    over the number of elements: prediction and target on x'_t carry no graph. The reported value is
    lambda || u - vT ||^2. Kind "cm" does the same to states, as published; there u - vT stands with the factor -D.
    """

    Config = MDTConfig
    needs: ClassVar[frozenset[str]] = frozenset({"jvp"})

    def contract(self) -> Contract:
        return contract(self.config)

    def targets(self, batch: Batch, nets: Nets, step: Step) -> Targets:
        """Prediction and target on the student's own samples, without graph; the samples with it."""
        noise = step.randn_like(batch.x0, "noise_fake")
        ones = torch.ones(batch.layout.batch_size, device=noise.device, dtype=noise.dtype)
        cond = dropped(batch, step, self.config.p_uncond, "drop/fake")
        v_fake = cast(Tensor, nets.student(noise, ones, cond, batch.layout)).to(noise.dtype)
        x_fake = noise - v_fake
        with torch.no_grad():
            found = match(self.config, replace(batch, x0=x_fake.detach()), nets, step, "vd")
        return replace(found, x_fake=x_fake, v_fake=v_fake)

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        if self.config.lambda_vd == 0 or step.index < self.config.vd_start:
            return {}
        found = self.targets(batch, nets, step)
        carrier = cast(Tensor, found.v_fake)
        carrier = carrier - carrier.detach()  # 0 with the graph of v_fake
        if self.config.vd_factor:
            carrier = batch.layout.expand(1 - found.t_B, carrier) * carrier
        error = (found.v_pred + carrier - found.v_tgt).square()
        return {"vd": self.config.lambda_vd * per(self.config.reduction, error, batch.layout)}


class MDT(Sum[MDTConfig]):
    """MDT-dist as published: velocity matching and velocity distillation on the same times and noise."""

    Config = MDTConfig
    needs: ClassVar[frozenset[str]] = frozenset({"jvp"})

    def __init__(self, config: MDTConfig) -> None:
        super().__init__(config, [VelocityMatching(config), VelocityDistillation(config)])

    def contract(self) -> Contract:
        return contract(self.config)
