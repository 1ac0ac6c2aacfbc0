"""Helpers of the tests of distribution matching: tiny networks with given draws, and Gaussians with exact critics."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from closed_forms import GAUSSIAN
from fewstep_distribution.critic import Critical
from fewstep_distribution.gan import Head
from fewstep_toy.analytic import AnalyticFlow
from torch import Tensor, nn

from fewstep.core.backbone import Backbone, Teacher
from fewstep.core.batch import Batch, Condition
from fewstep.core.guidance import Guidance
from fewstep.core.layout import Layout
from fewstep.core.objective import Nets
from fewstep.core.times import TimeSampler
from fewstep.testing import TinyBackbone

LATE = TimeSampler(mean=5.0, std=0.1)  # times above 0.98
DROPPED = 0.5  # p_uncond; of three samples the condition of the first is dropped


def objective_of(cls: type[Critical[Any]], **keys: Any) -> Critical[Any]:
    return cls(cls.Config(**keys))


def tiny_nets() -> Nets:
    student, critic, teacher = (TinyBackbone(seed=seed).double() for seed in (1, 2, 3))
    return Nets({"student": student, "critic": critic, "teacher": Teacher(teacher, Guidance(2.0))}, {})


def drawn(batch: Batch, seed: int = 0) -> dict[str, Tensor]:
    """Noise and times of a one-step student's terms, and which conditions it drops, by the names of their draws."""
    g = torch.Generator().manual_seed(seed)
    names = ("dmd", "sid", "vsd", "gan", "ladd", "fakes")
    noise = {name: torch.randn(batch.x0.shape, generator=g, dtype=torch.float64) for name in names}
    times = {name: 0.1 + 0.8 * torch.rand(batch.layout.batch_size, generator=g, dtype=torch.float64) for name in noise}
    found = {f"noise/{name}": value for name, value in noise.items()} | {f"t/{k}": v for k, v in times.items()}
    found["drop/fake"] = torch.linspace(0.2, 0.9, batch.layout.batch_size, dtype=torch.float64)
    return found | {"noise_fake": torch.randn(batch.x0.shape, generator=g, dtype=torch.float64)}


def told(batch: Batch, draws: dict[str, Tensor], i: int) -> Condition:
    """The condition that sample i's student sees under ``DROPPED``."""
    own = batch.select(torch.tensor([i])).cond
    return own.negative() if float(draws["drop/fake"][i]) < DROPPED else own


def logit(network: TinyBackbone, head: Head, x: Tensor, t: float, cond: Condition, layer: int = 0) -> Tensor:
    """The head's layer on the network's first layer, from its weights: of one sample x [N, 3]."""
    assert cond.tokens is not None
    facts = torch.cat([x.new_tensor([t, 0.0]), x.mean()[None], cond.tokens[0]])
    h = torch.cat([x, facts.expand(len(x), -1)], 1) @ network.inner.weight.T + network.inner.bias
    norm, first, _, last = head.layers[layer]  # type: ignore[misc]
    h = (h - h.mean(1, keepdim=True)) / (h.var(1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    h = h * norm.weight + norm.bias
    h = torch.nn.functional.silu(h @ first.weight.T + first.bias)
    return (h @ last.weight.T + last.bias).mean()


class LinearStudent(Backbone):
    """One step from noise z lands on scale z + mean, the same for both coordinates' own scale and mean."""

    def __init__(self, scale: tuple[float, float], mean: tuple[float, float]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))
        self.mean = nn.Parameter(torch.tensor(mean, dtype=torch.float64))

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        return x - (self.scale * x + self.mean)


class ExactCritic(Backbone):
    """The velocity of a Gaussian N(mean, scale^2), E[eps - x | x_t], by the regression of Gaussians."""

    def __init__(self, student: LinearStudent) -> None:
        super().__init__()
        self.scale, self.mean = (nn.Parameter(p.detach().clone()) for p in (student.scale, student.mean))

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        t = layout.expand(t_B, x)
        slope = (t - (1 - t) * self.scale**2) / ((1 - t) ** 2 * self.scale**2 + t**2)
        return slope * (x - (1 - t) * self.mean) - self.mean


TEACHER = AnalyticFlow(GAUSSIAN).double()
STD, MEAN = float(TEACHER.std), TEACHER.means[0].detach()


def noisy(scale: Tensor, t: float) -> Tensor:
    """The variance of x_t."""
    return (1 - t) ** 2 * scale**2 + t**2


def quadrature(count: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes of z and eps, [count^4, 2] each, and weights [count^4]: exact for polynomials of degree 2 count - 1."""
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(count))
    grid = torch.cartesian_prod(nodes, nodes, nodes, nodes)
    product = torch.cartesian_prod(*[weights / weights.sum()] * 4).prod(1)
    return grid[:, :2], grid[:, 2:], product
