"""Latent adversarial diffusion distillation (LADD, arXiv 2403.12015)."""

from __future__ import annotations

from functools import partial
from typing import ClassVar, cast

import torch
from torch import Tensor
from torch.nn.functional import relu

from fewstep.core.backbone import Backbone, Teacher
from fewstep.core.batch import Batch
from fewstep.core.contract import Contract
from fewstep.core.dataset import Dataset
from fewstep.core.objective import Nets, NetSpec, Objective, Phase, Step
from fewstep.core.pairs import TeacherPairs
from fewstep.core.times import step_grid
from fewstep.errors import FewstepError
from fewstep.methods.point import UNIFORM, dropped
from fewstep_distribution.config import LADDConfig
from fewstep_distribution.critic import carried
from fewstep_distribution.gan import Head, head_on


class LADD(Objective[LADDConfig]):
    """Adversarial only: heads on the teacher's inner layers tell its noisy samples, or noisy data, from noisy fakes.

    The student jumps from a noisy sample, x = x_s - s F(x_s, s), at a time s of its sampler. With x_t between x and
    fresh noise at a separately drawn time t, and D_k(x_t) the logit of the head on the teacher's layer k,

        discriminator: max(0, 1 - D_k(real_t)) + max(0, 1 + D_k(x_t)),    student: -D_k(x_t)

    (hinge loss), each averaged over k. The teacher is frozen; the student's gradient runs through it. The time t
    decides what is discriminated: details at small t, global structure at large t; the paper favours large t. Real
    samples and fakes share t and noise. The heads are updated in every iteration, the student in every
    ``head_ratio``-th. Here a head is a small MLP on each row's features, its logits averaged over the sample; the
    paper's heads are convolutional and conditioned on t and the text.
    """

    Config = LADDConfig
    needs: ClassVar[frozenset[str]] = frozenset({"features"})

    def contract(self) -> Contract:
        """Sampled at exactly the times it is trained at."""
        steps, rescale_t = self.config.steps, self.config.rescale_t
        times = tuple(step_grid(steps, rescale_t)[:-1])
        return Contract(sampler="consistency", steps=(steps,), times=times, rescale_t=rescale_t)

    def networks(self) -> dict[str, NetSpec]:
        """The student and the discriminator heads."""
        heads = NetSpec(build=self._heads, lr_scale=self.config.head_lr, betas=self.config.head_betas)
        return {"student": NetSpec(), "discriminator": heads}

    def phase(self, step: int) -> Phase:
        return Phase(("discriminator",) if step % self.config.head_ratio else ("student", "discriminator"))

    def data(self, dataset: Dataset, teacher: Teacher) -> Dataset:
        """The run's data set, or the teacher's samples under its conditions.

        Raises:
            FewstepError: for a teacher without inner layers.
        """
        if "features" not in teacher.backbone.provides:
            raise FewstepError(
                f"method 'ladd' reads inner layers of the teacher, and a {type(teacher.backbone).__name__} has none; "
                "accepted: a teacher that is a network, such as the toy's with backbone.teacher=learned"
            )
        if self.config.real == "data" or "pairs" in dataset.provides:
            return dataset
        return TeacherPairs(self.config.pairs, dataset, teacher)

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        layout, heads = batch.layout, cast(Head, nets.discriminator)
        moves, look = "student" in step.decide(self.phase).trains, partial(self.features, batch, nets, step)
        with torch.set_grad_enabled(moves):
            x = self.jump(batch, nets, step)
            leaf = x.detach().requires_grad_()
            fake = look(leaf)
        with torch.no_grad():
            real = look(batch.x0)
        told = relu(1 - heads.logits(real, layout)) + relu(1 + heads.logits([h.detach() for h in fake], layout))
        terms = {"discriminator": told.mean(0)}
        if moves:
            value_B = -heads(fake, layout)
            (gradient,) = torch.autograd.grad(value_B.sum(), leaf)
            terms["ladd"] = value_B.detach() + layout.sum(carried(gradient, x))
        return terms

    def jump(self, batch: Batch, nets: Nets, step: Step) -> Tensor:
        """The student's samples, with its graph, from noisy data at times of its sampler."""
        layout, config = batch.layout, self.config
        grid = torch.tensor(self.contract().times, dtype=torch.float64, device=batch.x0.device)
        s_B = grid[(step.times(layout, UNIFORM, "jump") * config.steps).long()]
        x_s = step.interpolant.interpolate(batch.x0, step.randn_like(batch.x0, "noise_fake"), s_B, layout)
        average = nets.student(x_s, s_B, dropped(batch, step, config.p_uncond, "drop/fake"), layout)
        return x_s - layout.expand(s_B, x_s) * cast(Tensor, average).to(x_s.dtype)

    def features(self, batch: Batch, nets: Nets, step: Step, x: Tensor) -> list[Tensor]:
        """The features of the teacher's inner layers at noised x."""
        backbone, t_B = cast(Backbone, nets.teacher.backbone), step.times(batch.layout, self.config.t, "t/ladd")
        x_t = step.interpolant.interpolate(x, step.randn_like(x, "noise/ladd"), t_B, batch.layout)
        found = backbone.features(x_t, t_B, batch.cond, batch.layout, self._taps(backbone))[1]
        return [h.to(x_t.dtype) for h in found]

    def _heads(self, backbone: Backbone) -> Head:
        return head_on(backbone, self._taps(backbone))

    def _taps(self, backbone: Backbone) -> tuple[int, ...]:
        return self.config.taps or tuple(range(len(backbone.taps())))
