"""A trained velocity of the student's own samples ("fakes"), which stands for their score in VD.

"critic": a network of its own (DMD2, arXiv 2405.14867). "twin": the student at negative time, F(x_t, -t) (TwinFlow,
arXiv 2512.05150). Both learn by flow matching on fakes. The velocity v of a distribution and the score of its noisy
samples determine each other, score = -(x_t + (1 - t) v) / t, so the difference of two velocities is that of two scores
times -t / (1 - t).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from fewstep.core.batch import Batch, Condition
from fewstep.core.objective import Nets, Step, per
from fewstep.methods.point import Look
from fewstep.methods.residual import Derivative
from fewstep_mdt.config import MDTConfig
from fewstep_mdt.match import Targets


@torch.no_grad()
def compare(config: MDTConfig, fakes: Batch, cond: Condition, nets: Nets, step: Step) -> Targets:
    """The fakes' velocity as prediction and the teacher's as target, at noisy fakes.

    Args:
        fakes: the student's samples as ``x0``, with the condition that the teacher sees.
        cond: that the fakes were made under.
    """
    look = Look(config, Derivative("continuous"), config.guidance_vd, name="vd", t=config.t_vd)
    x_t, t_B, noise = look.noisy(fakes, step)
    score = velocity(config, fakes, cond, nets, x_t, t_B)
    teacher = look.velocity(fakes, noise, x_t, t_B, nets, step).to(score.dtype)
    v_path = step.interpolant.velocity(fakes.x0, noise)
    return Targets(score, teacher, t_B, torch.zeros_like(t_B), teacher, v_path)


def fit(config: MDTConfig, fakes: Batch, cond: Condition, nets: Nets, step: Step) -> Tensor:
    """Flow matching on fakes, as a loss term: || v(x_t, t) - (eps - x0) ||^2, at times and noise of its own."""
    look = Look(config, Derivative("continuous"), None, name="fakes", t=config.t_vd or config.t)
    x_t, t_B, noise = look.noisy(fakes, step)
    error = velocity(config, fakes, cond, nets, x_t, t_B) - step.interpolant.velocity(fakes.x0, noise)
    return per(config.reduction, error.square(), fakes.layout)


def velocity(config: MDTConfig, fakes: Batch, cond: Condition, nets: Nets, x_t: Tensor, t_B: Tensor) -> Tensor:
    """The velocity of fakes at x_t."""
    network, t_B = (nets.student, -t_B) if config.score == "twin" else (nets.critic, t_B)
    return cast(Tensor, network(x_t, t_B, cond, fakes.layout)).to(x_t.dtype)
