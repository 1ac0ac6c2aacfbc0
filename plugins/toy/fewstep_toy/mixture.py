"""Gaussian mixtures in the plane: samples, classes and the exact velocity of their flow."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Layout


@dataclass(frozen=True)
class Mixture:
    """Equally weighted isotropic Gaussians.

    Args:
        means: [M, 2].
        std: of every component.
        classes: int64 [M], the class of each component, from 0.
    """

    means: Tensor
    std: float
    classes: Tensor

    @property
    def class_count(self) -> int:
        return int(self.classes.max()) + 1

    def draw_labels(self, count: int, generator: torch.Generator) -> Tensor:
        """[count] classes, as often as they have components."""
        return self.classes[torch.randint(len(self.means), (count,), generator=generator)]

    def sample(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """[N, 2] points of these classes [N]."""
        belongs = (self.classes[None] == labels[:, None]).to(self.means.dtype)
        component = torch.multinomial(belongs, 1, generator=generator)[:, 0]
        noise = torch.randn(len(labels), 2, generator=generator, dtype=self.means.dtype)
        return self.means[component] + self.std * noise

    def allowed(self, one_hot: Tensor) -> Tensor:
        """[..., K] -> bool [..., M]: the components of the wanted class; all of them for a row of zeros."""
        found = one_hot[..., self.classes] > 0
        return found | ~found.any(-1, keepdim=True)

    def logits(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """log p(x, component) but for a constant, [..., M], of a x0 + b eps; x [..., 2], a and b [..., 1]."""
        variance = (a * self.std).square() + b.square()
        squares = (x[..., None, :] - a[..., None] * self.means.to(x.dtype)).square().sum(-1)
        return -squares / (2 * variance)  # all components have one width: its normalisation is part of the constant


def exact_velocity(mixture: Mixture, interpolant: Interpolant, x: Tensor, t: Tensor, one_hot: Tensor | None) -> Tensor:
    """E[(1 - sigma_min) eps - x0 | x_t] in closed form (the marginal velocity of flow matching, Lipman et al. 2023).

    Args:
        x: [..., 2]; t: [..., 1]; one_hot: [..., K] or None for the whole mixture.
    """
    a, b = 1 - t, interpolant.sigma_min + (1 - interpolant.sigma_min) * t
    logits = mixture.logits(x, a, b)
    if one_hot is not None:
        logits = logits.masked_fill(~mixture.allowed(one_hot), -math.inf)
    centre = logits.softmax(-1) @ mixture.means.to(x.dtype)  # E[mean of the component | x]
    variance = (a * mixture.std).square() + b.square()
    rest = (x - a * centre) / variance
    return (1 - interpolant.sigma_min) * b * rest - (centre + a * mixture.std**2 * rest)


def expand_rows(values: Tensor, x: Tensor, layout: Layout) -> Tensor:
    """Per-sample vectors [B, K] beside the points of x [..., 2] of that layout: [..., K]."""
    columns = [layout.expand(values[:, k], x).expand(*x.shape[:-1], 1) for k in range(values.shape[1])]
    return torch.cat(columns, -1)


def log_density(mixture: Mixture, x: Tensor) -> Tensor:
    """[N, M] log p(x, component) of the target itself but for a constant; its class by the largest sum."""
    ones = torch.ones_like(x[..., :1])
    return mixture.logits(x, ones, torch.zeros_like(ones))


def most_probable(mixture: Mixture, x: Tensor) -> Tensor:
    """[N] the class that x most probably comes from."""
    onto = torch.nn.functional.one_hot(mixture.classes, mixture.class_count).to(x.dtype)
    return (log_density(mixture, x).softmax(-1) @ onto).argmax(-1)


def _ring() -> Mixture:
    angle = torch.arange(8) * (math.pi / 4)
    return Mixture(2 * torch.stack([angle.cos(), angle.sin()], 1), 0.2, torch.arange(8))


def _checkerboard() -> Mixture:
    """The eight fields of one colour of a 4 x 4 board on [-2, 2]^2, each 4 x 4 narrow Gaussians."""
    fields = [(i, j) for i in range(4) for j in range(4) if (i + j) % 2 == 0]
    inner = (torch.arange(4) + 0.5) / 4
    grid = torch.cartesian_prod(inner, inner)
    means = torch.cat([grid + torch.tensor([i - 2.0, j - 2.0]) for i, j in fields])
    return Mixture(means, 0.1, torch.arange(len(fields)).repeat_interleave(len(grid)))


def _moons() -> Mixture:
    angle = torch.linspace(0, math.pi, 16)
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1)
    means = 1.5 * (torch.cat([upper, lower]) - torch.tensor([0.5, 0.25]))
    return Mixture(means, 0.12, torch.arange(2).repeat_interleave(16))


def _gaussian() -> Mixture:
    return Mixture(torch.tensor([[1.0, -0.5]]), 0.5, torch.zeros(1, dtype=torch.int64))


TARGETS: dict[str, Callable[[], Mixture]] = {
    "ring": _ring,
    "checkerboard": _checkerboard,
    "moons": _moons,
    "gaussian": _gaussian,
}
