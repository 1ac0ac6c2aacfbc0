"""Base of the objectives with a critic, which learns the velocity of the student's samples ("fakes")."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import nullcontext
from dataclasses import replace
from typing import TypeVar, cast

import torch
from torch import Tensor

from fewstep.core.batch import Batch, Condition
from fewstep.core.contract import Contract
from fewstep.core.layout import Layout
from fewstep.core.objective import Nets, NetSpec, Objective, Phase, Reduction, Step, per
from fewstep.core.times import step_grid
from fewstep.methods.fakes import Velocities, Velocity, fit, generate
from fewstep.methods.point import Look, dropped
from fewstep.methods.residual import Derivative
from fewstep_distribution.config import CriticConfig

C = TypeVar("C", bound=CriticConfig)


class Critical(Objective[C]):
    """Every iteration trains the critic on fakes; every ``critic_ratio``-th also trains the student, on the same."""

    def contract(self) -> Contract:
        """Sampled at exactly the times it is trained at (DMD2's backward simulation)."""
        steps, rescale_t = self.config.steps, self.config.rescale_t
        times = tuple(step_grid(steps, rescale_t)[:-1])
        return Contract(sampler="consistency", steps=(steps,), times=times, rescale_t=rescale_t)

    def networks(self) -> dict[str, NetSpec]:
        """The student and the critic, which both start as the teacher."""
        return {"student": NetSpec(), "critic": NetSpec(lr_scale=self.config.critic_lr)}

    def phase(self, step: int) -> Phase:
        return Phase(("critic",) if step % self.config.critic_ratio else ("student", "critic"))

    def look(self, name: str) -> Look:
        """The settings of the term ``name``, with its own draws of time and noise."""
        return Look(self.config, Derivative("continuous"), self.config.guidance, name=name, t=self.config.t)

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        moves = "student" in step.decide(self.phase).trains
        cond = dropped(batch, step, self.config.p_uncond, "drop/fake")
        with nullcontext() if moves else torch.no_grad():
            x = self.generated(batch, cond, nets, step)
        fakes = replace(batch, x0=x.detach())
        terms = self.matching(x, fakes, cond, nets, step) if moves else {}
        return terms | self.fitting(batch, fakes, cond, nets, step)

    def generated(self, batch: Batch, cond: Condition, nets: Nets, step: Step) -> Tensor:
        """Fakes, with the student's graph where gradients are enabled."""
        return generate(batch, cond, nets, step, tuple(self.contract().grid(self.config.steps)))[0]

    @abstractmethod
    def matching(self, x: Tensor, fakes: Batch, cond: Condition, nets: Nets, step: Step) -> dict[str, Tensor]:
        """The student's terms.

        Args:
            x: fakes with the student's graph.
            fakes: the same samples as ``x0``, detached, with the condition that the teacher sees.
            cond: the condition that the fakes were made under.
        """

    def fitting(self, batch: Batch, fakes: Batch, cond: Condition, nets: Nets, step: Step) -> dict[str, Tensor]:
        """The critic's terms; ``batch`` has the real samples."""
        x_t, t_B, noise = self.look("fakes").noisy(fakes, step)
        velocity = self.critic(cond, batch.layout, nets)(x_t, t_B)
        return {"critic": fit(velocity, fakes, noise, step, self.config.reduction)}

    def critic(self, cond: Condition, layout: Layout, nets: Nets) -> Velocity:
        """The velocity of the fakes' distribution under ``cond``."""
        return lambda x_t, t_B: cast(Tensor, nets.critic(x_t, t_B, cond, layout))


def carried(gradient: Tensor, x: Tensor) -> Tensor:
    """A zero whose gradient with respect to x is ``gradient``, element by element.

    The student's terms depend on it only through its samples. With their gradient taken at the samples first, none
    reaches the weights of a critic trained in the same iteration, and the critic's graph is freed before the student's
    backward pass.
    """
    return gradient * (x - x.detach())


def followed(at: Velocities, scale_B: Tensor, x: Tensor, layout: Layout, reduction: Reduction) -> Tensor:
    """A term whose gradient with respect to the fakes x is g = scale (vT - v), v the velocity of their distribution.

    The reported value is |g|^2 / 2. ``at`` carries no graph.
    """
    gradient = layout.expand(scale_B, x) * (at.teacher - at.fake)
    return per(reduction, 0.5 * gradient.square() + carried(gradient, x), layout)
