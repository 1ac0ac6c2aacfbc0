"""Prediction and target of both MDT terms at noisy samples."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fewstep.core.batch import Batch
from fewstep.core.contract import Contract
from fewstep.core.objective import Nets, Step
from fewstep.methods.point import Look
from fewstep.methods.residual import Derivative
from fewstep_mdt.config import MDTConfig, VMConfig


@dataclass(frozen=True)
class Targets:
    """Prediction and target of a term, on the samples' layout.

    Args:
        v_pred: the student's average velocity F (kind "cm": its state at the phase end), with its graph in VM, detached
            in VD; for the scores "critic" and "twin" the velocity trained on the fakes.
        v_tgt: its target, detached.
        t_B: [B] times.
        end_B: [B] phase ends, all 0 for one phase.
        v_teacher: the teacher's velocity at x_t.
        v_path: eps - x0 of the clean sample and the noise that x_t was made with.
        x_fake, v_fake: VD only: the student's sample z' - F(z', 1), and F(z', 1); both with their graph.
    """

    v_pred: Tensor
    v_tgt: Tensor
    t_B: Tensor
    end_B: Tensor
    v_teacher: Tensor
    v_path: Tensor
    x_fake: Tensor | None = None
    v_fake: Tensor | None = None


def derivative(config: VMConfig) -> Derivative:
    """How dF/dt is taken. The published consistency loss (kind "cm") has no tangent to normalise."""
    if config.kind == "cm":
        return Derivative("discrete", config.interval)
    return Derivative(config.kind, config.interval, config.d_norm, config.d_norm_constant)


def match(config: VMConfig, batch: Batch, nets: Nets, step: Step, term: str) -> Targets:
    """Prediction and target of a term ("vm" or "vd") on the clean samples ``batch.x0``, real or the student's own.

    Both terms of a step share times and noise, as published, unless VD draws its own (``t_vd``).
    """
    own = config.t_vd if term == "vd" and isinstance(config, MDTConfig) else None
    look = Look(config, derivative(config), getattr(config, f"guidance_{term}"), config.multiphase, term, own)
    previous = config.network(nets) if term == "vm" else None  # VD's velocity is the student's own
    at = look.at(batch, nets, step, previous)
    interval = batch.layout.expand(at.interval_B, at.x_t)
    span = at.span - interval if config.kind == "discrete" and config.difference == "euler" else at.span
    pair = at.residual.value, at.residual.target(span)
    if config.kind == "cm":
        pair = at.residual.states(at.x_t, at.span, interval)
    v_path = step.interpolant.velocity(batch.x0, at.noise)
    return Targets(*pair, at.t_B, at.end_B, at.residual.velocity, v_path)


def contract(config: VMConfig) -> Contract:
    """How an MDT student is sampled: guidance is baked in; with phases, one step per phase."""
    steps = (config.multiphase,) if config.multiphase > 1 else (1, 2, 4)
    return Contract(sampler=config.sampler, steps=steps, rescale_t=config.rescale_t)
