"""The toy's targets: Gaussian mixtures in the plane."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.core.layout import Layout
from fewstep.core.mixture import Mixture


def expand_rows(values: Tensor, x: Tensor, layout: Layout) -> Tensor:
    """Per-sample vectors [B, K] expanded to the points of x [..., 2]: [..., K]."""
    columns = [layout.expand(values[:, k], x).expand(*x.shape[:-1], 1) for k in range(values.shape[1])]
    return torch.cat(columns, -1)


def _ring() -> Mixture:
    angle = torch.arange(8) * (math.pi / 4)
    return Mixture(2 * torch.stack([angle.cos(), angle.sin()], 1), 0.2, torch.arange(8))


def _checkerboard() -> Mixture:
    """The eight squares of one colour of a 4 x 4 board on [-2, 2]^2, each made of 4 x 4 narrow Gaussians."""
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
