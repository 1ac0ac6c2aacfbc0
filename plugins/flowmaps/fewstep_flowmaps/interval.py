"""Intervals [s, t] for noisy samples, and the base class of all flow-map objectives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn

from fewstep.core.batch import Batch
from fewstep.core.contract import Contract
from fewstep.core.layout import Layout
from fewstep.core.objective import Nets, Objective, Step
from fewstep.methods.point import UNIFORM, Look, dropped
from fewstep.methods.residual import Derivative, Residual
from fewstep_flowmaps.config import FlowMapConfig, IntervalConfig, MapConfig

C = TypeVar("C", bound=MapConfig)
Average = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x, t_B, s_B) -> F, with condition and layout bound
Velocity = Callable[[Tensor, Tensor], Tensor]  # (x, t_B) -> vT
CONTINUOUS = Derivative("continuous")


@dataclass(frozen=True)
class Interval:
    """Noisy samples ``x_t`` at ``t_B`` [B], with the times ``s_B`` [B] that the student jumps to.

    Args:
        span: t - s, expanded to x_t.
        student: the student's average velocity F(x, t, s), with its graph.
        target: F of the network that predicts targets.
        teacher: velocity (x, t) of the guided teacher, detached.
        derivative: how ``residual`` takes dF/dt.
    """

    x_t: Tensor
    t_B: Tensor
    s_B: Tensor
    span: Tensor
    student: Average
    target: Average
    teacher: Velocity
    layout: Layout
    derivative: Derivative

    @cached_property
    def velocity(self) -> Tensor:
        """vT at x_t, detached."""
        return self.teacher(self.x_t, self.t_B)

    def residual(self, step: Step, direction: Tensor | None = None) -> Residual:
        """The shared residual, with dF/dt along (direction, 1, 0); ``direction`` defaults to vT."""

        def towards_s(x: Tensor, t_B: Tensor) -> Tensor:
            return self.student(x, t_B, self.s_B)

        direction = self.velocity if direction is None else direction
        return self.derivative.residual(towards_s, self.x_t, self.t_B, direction, self.layout, step)


class FlowMap(Objective[C]):
    """A student with two time inputs, sampled by one jump per step."""

    needs: ClassVar[frozenset[str]] = frozenset({"two_time"})
    sampler = "jump"

    def contract(self) -> Contract:
        sampler, noise = ("gamma", self.config.gamma) if self.config.gamma else (self.sampler, None)
        return Contract(sampler=sampler, noise=noise, rescale_t=self.config.rescale_t, two_time=True)

    def look(self) -> Look:
        """The settings of this objective's evaluation at noisy samples."""
        return Look(self.config, CONTINUOUS, self.config.guidance)

    def derivative(self) -> Derivative:
        """How dF/dt is taken."""
        return CONTINUOUS

    def ends(self, batch: Batch, step: Step) -> tuple[Tensor, Tensor]:
        """[B] times t and s <= t of this iteration; a share ``apart`` has s < t."""
        assert isinstance(self.config, IntervalConfig)
        t_B, s_B = drawn(self.config, batch.layout, step)
        t_B = CONTINUOUS.times(t_B, step.interpolant.sigma_min)
        return t_B, torch.where(self.are_apart(batch, step), s_B, t_B)

    def are_apart(self, batch: Batch, step: Step) -> Tensor:
        """[B] whether a sample has s < t."""
        assert isinstance(self.config, FlowMapConfig)
        return step.times(batch.layout, UNIFORM, "apart") < self.config.apart

    def interval(self, batch: Batch, nets: Nets, step: Step, target: nn.Module | None = None) -> Interval:
        """Draws an interval and noise for each sample; ``target`` predicts targets in place of the student."""
        look, layout = self.look(), batch.layout
        t_B, s_B = self.ends(batch, step)
        x_t, _, noise = look.noisy(batch, step, t_B)
        cond = dropped(batch, step, self.config.p_uncond, "drop/main")

        def average(network: nn.Module) -> Average:
            def ask(x: Tensor, t_B: Tensor, s_B: Tensor) -> Tensor:
                return cast(Tensor, network(x, t_B, cond, layout, s_B=s_B)).to(x_t.dtype)

            return ask

        @torch.no_grad()
        def teacher(x: Tensor, t_B: Tensor) -> Tensor:
            return look.velocity(batch, noise, x, t_B, nets, step).to(x_t.dtype)

        networks = average(nets.student), average(target or nets.student)
        span = layout.expand(t_B - s_B, x_t)
        return Interval(x_t, t_B, s_B, span, *networks, teacher, layout, self.derivative())


def drawn(config: IntervalConfig, layout: Layout, step: Step) -> tuple[Tensor, Tensor]:
    """[B] times t and s <= t by ``config.draw``; a share ``from_noise`` has t = 1, a share ``to_data`` has s = 0."""
    first_B = step.times(layout, config.t, "t")
    if config.draw == "ends":
        second_B = step.times(layout, config.t, "s")
        t_B, s_B = torch.maximum(first_B, second_B), torch.minimum(first_B, second_B)
    else:
        s_B = (1 - first_B) * step.times(layout, UNIFORM, "s")
        t_B = s_B + first_B
    t_B = torch.where(step.times(layout, UNIFORM, "from_noise") < config.from_noise, 1.0, t_B)
    return t_B, torch.where(step.times(layout, UNIFORM, "to_data") < config.to_data, 0.0, s_B)


@torch.no_grad()
def through(average: Average, x_t: Tensor, t_B: Tensor, s_B: Tensor, share_B: Tensor, layout: Layout) -> Tensor:
    """The average velocity over [s, t] of two consecutive jumps, from t to m and from m to s; m = t - share (t - s).

    Displacements add up: (t - s) F_ts = (t - m) F_tm + (m - s) F_ms with x_m = x_t - (t - m) F_tm. ``share_B`` is [B].
    """
    # In float64: an m rounded to float32 would not divide [s, t] by this share.
    m_B = t_B.double() - share_B.double() * (t_B.double() - s_B.double())
    first = average(x_t, t_B, m_B)
    second = average(x_t - layout.expand(t_B - m_B, x_t) * first, m_B, s_B)
    share = layout.expand(share_B, x_t)
    return share * first + (1 - share) * second
