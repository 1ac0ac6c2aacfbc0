"""Adversarial terms: a discriminator head on the critic's inner features tells noisy data from noisy fakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from fewstep.core.backbone import Backbone
from fewstep.core.batch import Batch, Condition
from fewstep.core.layout import Layout
from fewstep.core.objective import Nets, NetSpec, Phase, Step
from fewstep.errors import invalid
from fewstep.methods.fakes import fit
from fewstep_distribution.config import AdversarialConfig
from fewstep_distribution.critic import Critical, carried

C = TypeVar("C", bound=AdversarialConfig)


class Head(nn.Module):
    """A discriminator head: one logit per sample [B] from features of inner layers, [B, ..., C] or [T, C], each layer
    with its own C.

    Args:
        widths: C of each layer.
    """

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))
            for width in widths
        )

    def forward(self, features: list[Tensor], layout: Layout) -> Tensor:
        return self.logits(features, layout).mean(0)

    def logits(self, features: list[Tensor], layout: Layout) -> Tensor:
        """[K, B] the logits by layer, which ``forward`` averages."""
        return torch.stack([layout.mean(layer(h)) for layer, h in zip(self.layers, features, strict=True)])


def head_on(backbone: Backbone, taps: Sequence[int]) -> Head:
    """A head on the inner layers ``taps`` of a network.

    Raises:
        FewstepError: for a layer that the network does not have.
    """
    layers = backbone.taps()
    for tap in taps:
        if not -len(layers) <= tap < len(layers):
            raise invalid("objective.taps", tap, f"{-len(layers)} to {len(layers) - 1}")
    return Head([layers[tap][1] for tap in taps])


class Adversarial(Critical[C]):
    """The non-saturating GAN terms of DMD2 (arXiv 2405.14867), where ``gan`` is above 0.

    The head minimises softplus(logit of fakes) + softplus(-logit of data), the student softplus(-logit of fakes). The
    optimal logit is log(p_data / p_fakes). The head reads inner features of the critic and its loss also trains the
    critic; at fakes, the features come from the same forward pass as the velocity.
    """

    def __init__(self, config: C) -> None:
        super().__init__(config)
        if self.has_head:
            self.needs = type(self).needs | {"features"}  # type: ignore[misc]

    @property
    def has_head(self) -> bool:
        return self.config.gan > 0

    def networks(self) -> dict[str, NetSpec]:
        """The student, the critic and, where there is one, the head."""
        if not self.has_head:
            return super().networks()
        build = partial(head_on, taps=self.config.taps)
        head = NetSpec(build=build, lr_scale=self.config.head_lr, betas=self.config.head_betas)
        return {**super().networks(), "head": head}

    def phase(self, step: int) -> Phase:
        return Phase(super().phase(step).trains + (("head",) if self.has_head else ()))

    def judged(self, x_t: Tensor, t_B: Tensor, cond: Condition, layout: Layout, nets: Nets) -> tuple[Tensor, Tensor]:
        """The critic's velocity and the head's logit [B] at x_t."""
        velocity, features = nets.critic.features(x_t, t_B, cond, layout, self.config.taps)
        return velocity, cast(Tensor, nets.head([h.to(x_t.dtype) for h in features], layout))

    def fitting(self, batch: Batch, fakes: Batch, cond: Condition, nets: Nets, step: Step) -> dict[str, Tensor]:
        if not self.has_head:
            return super().fitting(batch, fakes, cond, nets, step)
        x_t, t_B, noise = self.look("fakes").noisy(fakes, step)
        velocity, fake_B = self.judged(x_t, t_B, cond, batch.layout, nets)
        real_t = step.interpolant.interpolate(batch.x0, noise, t_B, batch.layout)
        _, real_B = self.judged(real_t, t_B, cond, batch.layout, nets)
        head = self.config.gan_critic * (softplus(fake_B) + softplus(-real_B))
        return {"critic": fit(velocity, fakes, noise, step, self.config.reduction), "head": head}

    def deceiving(self, x: Tensor, fakes: Batch, cond: Condition, nets: Nets, step: Step) -> dict[str, Tensor]:
        """The student's adversarial term; ``x`` are the fakes with the student's graph."""
        if self.config.gan == 0:
            return {}
        leaf, layout = x.detach().requires_grad_(), fakes.layout
        x_t, t_B, _ = self.look("gan").noisy(replace(fakes, x0=leaf), step)
        value_B = softplus(-self.judged(x_t, t_B, cond, layout, nets)[1])
        (gradient,) = torch.autograd.grad(value_B.sum(), leaf)
        return {"gan": self.config.gan * (value_B.detach() + layout.sum(carried(gradient, x)))}
