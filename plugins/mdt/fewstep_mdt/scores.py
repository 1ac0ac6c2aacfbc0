"""A velocity trained on the student's own samples ("fakes"), which stands for their score in VD.

"critic": a separate network (DMD2, arXiv 2405.14867). "twin": the student at negative times, F(x_t, -t) (TwinFlow,
arXiv 2512.05150).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from fewstep.core.batch import Batch, Condition
from fewstep.core.objective import Nets, Step
from fewstep.methods import fakes as shared
from fewstep.methods.point import Look
from fewstep.methods.residual import Derivative
from fewstep_mdt.config import MDTConfig
from fewstep_mdt.match import Targets


@torch.no_grad()
def compare(config: MDTConfig, fakes: Batch, cond: Condition, nets: Nets, step: Step) -> Targets:
    """The fakes' velocity as prediction and the teacher's as target, at noisy fakes.

    Args:
        fakes: the student's samples as ``x0``, with the condition that the teacher sees.
        cond: the condition that the fakes were made under.
    """
    look = Look(config, Derivative("continuous"), config.guidance_vd, name="vd", t=config.t_vd)
    at = shared.compare(look, fakes, velocity(config, fakes, cond, nets), nets, step)
    return Targets(at.fake, at.teacher, at.t_B, torch.zeros_like(at.t_B), at.teacher, at.path)


def fit(config: MDTConfig, fakes: Batch, cond: Condition, nets: Nets, step: Step) -> Tensor:
    """Flow matching on fakes, as a loss term, with its own draws of time and noise."""
    look = Look(config, Derivative("continuous"), None, name="fakes", t=config.t_vd or config.t)
    x_t, t_B, noise = look.noisy(fakes, step)
    return shared.fit(velocity(config, fakes, cond, nets)(x_t, t_B), fakes, noise, step, config.reduction)


def velocity(config: MDTConfig, fakes: Batch, cond: Condition, nets: Nets) -> shared.Velocity:
    """The velocity of fakes that were made under ``cond``."""

    def found(x_t: Tensor, t_B: Tensor) -> Tensor:
        network, at_B = (nets.student, -t_B) if config.score == "twin" else (nets.critic, t_B)
        return cast(Tensor, network(x_t, at_B, cond, fakes.layout))

    return found
