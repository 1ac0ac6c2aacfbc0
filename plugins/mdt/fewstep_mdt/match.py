"""What both MDT terms do at a point of a path: evaluate student and teacher there, and make prediction and target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from fewstep.backbone import Guidance
from fewstep.batch import Batch, Condition
from fewstep.objective import Nets, Step
from fewstep.residual import Derivative, phase_end
from fewstep_mdt.config import VMConfig


@dataclass(frozen=True)
class Targets:
    """What a term compares, on the samples' layout.

    Args:
        v_pred: the student's velocity F (kind "cm": its state at the phase end), with graph in VM, without in VD.
        v_tgt: what it is compared with, detached.
        t_B: [B] times.
        end_B: [B] phase ends, all 0 for one phase.
        x_fake, v_fake: VD only: the student's sample z' - F(z', 1), and F(z', 1); both with graph.
    """

    v_pred: Tensor
    v_tgt: Tensor
    t_B: Tensor
    end_B: Tensor
    x_fake: Tensor | None = None
    v_fake: Tensor | None = None


def derivative(config: VMConfig) -> Derivative:
    """The residual's knobs. The published consistency loss has no tangent to normalise."""
    if config.kind == "cm":
        return Derivative("discrete", config.interval)
    return Derivative(config.kind, config.interval, config.d_norm, config.d_norm_constant)


def times(config: VMConfig, batch: Batch, step: Step) -> Tensor:
    """[B] times of the draw "t": s + D + (1 - D - s) u for discrete and cm, s + (1 - s) u for continuous."""
    return derivative(config).times(step.times(batch.layout, config.t), step.path.sigma_min)


def guided(config: VMConfig, term: str, step: Step) -> Guidance:
    """The teacher's guidance of a term ("vm" or "vd") in this step."""
    strengths = getattr(config, f"guidance_{term}")
    values = strengths if isinstance(strengths, tuple) else (strengths,)
    return Guidance.strength(step.choice(values, f"guidance/{term}"))


def student_condition(config: VMConfig, batch: Batch, step: Step, name: str) -> Condition:
    """The condition with a share dropped, drawn anew for each place ``name``. The teacher's is never dropped."""
    if config.p_uncond == 0:
        return batch.cond
    draw = torch.rand(batch.layout.batch_size, generator=step.stream(f"drop/{name}"), device=batch.x0.device)
    return batch.cond.dropped(draw < config.p_uncond)


@torch.no_grad()
def path_velocity(config: VMConfig, batch: Batch, noise: Tensor, t_B: Tensor, nets: Nets, guidance: Guidance) -> Tensor:
    """vT at the point of the path between ``batch.x0`` and ``noise``."""
    path = nets.teacher.path
    if config.velocity == "data":
        return cast(Tensor, path.velocity(batch.x0, noise))
    x_t = path.interpolate(batch.x0, noise, t_B, batch.layout)
    return cast(Tensor, nets.teacher(x_t, t_B, batch.cond, batch.layout, guidance=guidance))


def match(config: VMConfig, batch: Batch, nets: Nets, step: Step, term: str) -> Targets:
    """Prediction and target of a term on the clean samples ``batch.x0``, real (VM) or the student's own (VD).

    Draws "t" and "noise", so terms of one step look at the same times and noise, as published.
    """
    layout, t_B, noise = batch.layout, times(config, batch, step), step.randn_like(batch.x0, "noise")
    x_t = step.path.interpolate(batch.x0, noise, t_B, layout)
    velocity = path_velocity(config, batch, noise, t_B, nets, guided(config, term, step))
    cond, knobs = student_condition(config, batch, step, term), derivative(config)

    def student(x: Tensor, t: Tensor) -> Tensor:
        return cast(Tensor, nets.student(x, t, cond, layout))

    residual = knobs.residual(student, x_t, t_B, velocity, layout, step)
    end_B = phase_end(knobs.before(t_B), config.multiphase, config.rescale_t)
    span = layout.expand(t_B - end_B, x_t)
    if config.kind == "cm":
        return Targets(*residual.states(x_t, span, knobs.interval), t_B, end_B)
    return Targets(residual.value, residual.target(span).detach(), t_B, end_B)
