"""Velocity distillation (VD), and MDT-dist's sum of VM and VD (arXiv 2509.04406)."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import ClassVar, cast

import torch
from torch import Tensor

from fewstep.core.batch import Batch, Condition
from fewstep.core.compose import Sum
from fewstep.core.contract import Contract
from fewstep.core.objective import Nets, NetSpec, Objective, Phase, Step, per
from fewstep.methods.fakes import generate, teacher_error
from fewstep.methods.point import dropped
from fewstep_mdt import scores
from fewstep_mdt.config import MDTConfig
from fewstep_mdt.match import Targets, contract, match
from fewstep_mdt.vm import VelocityMatching


class VelocityDistillation(Objective[MDTConfig]):
    """Score distillation: the difference of two velocities moves the student's samples ("fakes").

    With x' = z' - F(z', 1) and x'_t = (1 - t) x' + t z'' for fresh noise z'', the gradient with respect to the weights
    is 2 lambda (v - vT)(x'_t, t) . dF(z', 1), averaged over elements; v and vT are detached. v stands for the score of
    the fakes. As published it is the student's own velocity u = F + t dF/dt; otherwise a velocity trained on the fakes
    (see ``scores``). The reported value is lambda || v - vT ||^2. With kind "cm" states take the place of velocities,
    as in the published trainer: -D (u - vT) takes the place of u - vT, with t - D as the factor of dF/dt.
    """

    Config = MDTConfig
    needs: ClassVar[frozenset[str]] = frozenset({"jvp"})

    def __init__(self, config: MDTConfig) -> None:
        super().__init__(config)
        if config.score == "twin":
            self.needs = type(self).needs | {"negative_time"}  # type: ignore[misc]

    def contract(self) -> Contract:
        return contract(self.config)

    def networks(self) -> dict[str, NetSpec]:
        """The student and, for score "critic", the critic, which starts as the teacher."""
        if self.config.score != "critic" or self.config.lambda_vd == 0:
            return {"student": NetSpec()}
        return {"student": NetSpec(), "critic": NetSpec(lr_scale=self.config.critic_lr)}

    def phase(self, step: int) -> Phase:
        return Phase(tuple(self.networks()))

    def started(self, step: Step) -> bool:
        """Whether VD has begun; see ``MDTConfig.vd_after``."""
        after = self.config.vd_after if self.config.lambda_vm > 0 else 0
        begins = after * step.total if 0 < after < 1 else after
        return self.config.lambda_vd > 0 and step.decide(lambda index: index >= begins)

    def critic_alone(self, step: Step) -> bool:
        """Whether this iteration trains only the critic: every iteration but each ``critic_ratio``-th."""
        ratio = self.config.critic_ratio
        return self.started(step) and self.config.score == "critic" and step.decide(lambda index: index % ratio != 0)

    def generate(self, batch: Batch, nets: Nets, step: Step) -> tuple[Tensor, Tensor, Condition]:
        """The student's one-step samples x' = z' - F(z', 1) and F(z', 1), with their graph, and their condition."""
        cond = dropped(batch, step, self.config.p_uncond, "drop/fake")
        return *generate(batch, cond, nets, step), cond

    def targets(self, batch: Batch, nets: Nets, step: Step) -> Targets:
        """Detached prediction and target on the student's own samples; the samples keep their graph."""
        return self._targets(batch, nets, step, *self.generate(batch, nets, step))

    def _targets(
        self, batch: Batch, nets: Nets, step: Step, x_fake: Tensor, v_fake: Tensor, cond: Condition
    ) -> Targets:
        fakes = replace(batch, x0=x_fake.detach())
        if self.config.score != "self":
            found = scores.compare(self.config, fakes, cond, nets, step)
        else:
            with torch.no_grad():
                found = match(self.config, fakes, nets, step, "vd")
        return replace(found, x_fake=x_fake, v_fake=v_fake)

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        config, started, alone = self.config, self.started(step), self.critic_alone(step)
        fits = config.score == "twin" or (config.score == "critic" and started)
        if config.lambda_vd == 0 or not (started or fits):
            return {}
        with nullcontext() if started and not alone else torch.no_grad():
            x_fake, v_fake, cond = self.generate(batch, nets, step)
        terms: dict[str, Tensor] = {}
        if started and not alone:
            terms["vd"] = self._distance(self._targets(batch, nets, step, x_fake, v_fake, cond), batch)
        if fits:
            fit = scores.fit(config, replace(batch, x0=x_fake.detach()), cond, nets, step)
            terms[config.score] = config.lambda_twin * fit if config.score == "twin" else fit
        return terms

    def _distance(self, found: Targets, batch: Batch) -> Tensor:
        """The loss term that has VD's gradient."""
        carrier = cast(Tensor, found.v_fake)
        carrier = carrier - carrier.detach()  # zero, with the graph of v_fake
        if self.config.vd_factor:
            carrier = batch.layout.expand(1 - found.t_B, carrier) * carrier
        if self.config.vd_norm == "dmd":
            size_B = teacher_error(found.v_teacher, found.v_path, batch.layout)
            carrier = carrier / batch.layout.expand(size_B, carrier)
        error = (found.v_pred + carrier - found.v_tgt).square()
        return self.config.lambda_vd * per(self.config.reduction, error, batch.layout)


class MDT(Sum[MDTConfig]):
    """MDT-dist: velocity matching plus velocity distillation, by default at the same times and noise, as published.

    With a critic and ``critic_ratio`` above 1, the iterations between two updates of the student train only the critic.
    """

    Config = MDTConfig
    needs: ClassVar[frozenset[str]] = frozenset({"jvp"})

    def __init__(self, config: MDTConfig) -> None:
        self.vd = VelocityDistillation(config)
        super().__init__(config, [VelocityMatching(config), self.vd])

    def contract(self) -> Contract:
        return contract(self.config)

    def phase(self, step: int) -> Phase:
        return self.vd.phase(step)

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        if self.vd.critic_alone(step):
            return self.vd.loss(batch, nets, step)
        return super().loss(batch, nets, step)
