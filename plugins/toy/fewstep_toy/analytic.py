"""Closed-form backbones: the velocity field of a mixture, and the flow map of a single Gaussian."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from fewstep.core.backbone import Backbone
from fewstep.core.batch import Condition
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Layout
from fewstep.core.mixture import Mixture
from fewstep.errors import FewstepError
from fewstep_toy.config import ToyConfig
from fewstep_toy.mixture import TARGETS, expand_rows


class AnalyticFlow(Backbone):
    """The exact velocity of the configured mixture, for points [B, 2], [B, P, 2] or packed [T, 2].

    The means are a parameter only so that the backbone has a device and a dtype as networks do.
    """

    Config = ToyConfig
    provides: ClassVar[frozenset[str]] = frozenset({"dense", "packed", "jvp", "two_time"})
    dataset = "toy"

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config, self.interpolant = config, Interpolant(config.sigma_min)
        target = TARGETS[config.target]()
        self.std = target.std
        self.means = nn.Parameter(target.means, requires_grad=False)
        self.classes: Tensor
        self.register_buffer("classes", target.classes)

    @property
    def mixture(self) -> Mixture:
        return Mixture(self.means.detach(), self.std, self.classes)

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        wanted = None if cond.tokens is None else expand_rows(cond.tokens, x, layout)
        return self.mixture.velocity(self.interpolant, x, layout.expand(t_B, x), wanted)

    def student(self, needs: frozenset[str] = frozenset()) -> Backbone:
        """A closed form cannot be trained: the student is an MLP fitted to it."""
        from fewstep_toy.network import fitted

        return fitted(self.config).to(self.means).student(needs)


class GaussianMap(Backbone):
    """The exact average velocity F(x, t, s) = (x_t - x_s) / (t - s) of a single Gaussian; s defaults to 0.

    For x_t = a x0 + b eps the marginals are N(a m, sigma^2) with sigma^2 = a^2 std^2 + b^2, and (x - a m) / sigma is
    constant along the flow. At s = t this is the velocity itself.

    Raises:
        FewstepError: for a target of several components, whose flow map has no closed form.
    """

    Config = ToyConfig
    provides: ClassVar[frozenset[str]] = AnalyticFlow.provides
    dataset = "toy"

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        target = TARGETS[config.target]()
        if len(target.means) > 1:
            raise FewstepError(f"target {config.target!r} has no flow map in closed form; accepted: 'gaussian'")
        self.std, self.interpolant = target.std, Interpolant(config.sigma_min)
        self.mean = nn.Parameter(target.means[0])

    def sigma(self, t: Tensor) -> Tensor:
        """The standard deviation of x_t."""
        b = self.interpolant.sigma_min + (1 - self.interpolant.sigma_min) * t
        return (((1 - t) * self.std).square() + b.square()).sqrt()

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        t = layout.expand(t_B, x)
        s = torch.zeros_like(t) if s_B is None else layout.expand(s_B, x)
        # (sigma_t - sigma_s) / (t - s) as (sigma_t^2 - sigma_s^2) / (t - s) / (sigma_t + sigma_s): no 0 / 0 at t = s.
        k = 1 - self.interpolant.sigma_min
        squares = k * (2 * self.interpolant.sigma_min + k * (t + s)) - self.std**2 * (2 - t - s)
        slope = squares / (self.sigma(t) + self.sigma(s))
        return (x - (1 - t) * self.mean) / self.sigma(t) * slope - self.mean
