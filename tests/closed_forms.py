"""Helpers of several tests: steps with given draws, random students, and a student with few parameters."""

from __future__ import annotations

from typing import Any, cast

import torch
from fewstep_toy.analytic import AnalyticFlow, GaussianMap
from fewstep_toy.config import ToyConfig
from fewstep_toy.network import ToyFlow
from torch import Tensor, nn

from fewstep.core.backbone import Backbone, Teacher
from fewstep.core.batch import Batch, Condition
from fewstep.core.derivatives import Tangents
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense, Layout
from fewstep.core.objective import Nets, Step, means
from fewstep.core.times import TimeSampler

GAUSSIAN = ToyConfig(target="gaussian")
RING = ToyConfig(target="ring", conditional=True)
TANGENTS, LINE = Tangents(), Interpolant()
torch.set_num_threads(1)  # tiny tensors: threads only wait for each other


class Given(Step):
    """A step whose named draws are given; "t" is what ``Step.times`` would return, in (0, 1)."""

    def __init__(
        self,
        draws: dict[str, Tensor],
        tangents: Tangents = TANGENTS,
        interpolant: Interpolant = LINE,
        index: int = 0,
        total: int = 1,
    ) -> None:
        super().__init__(index=index, interpolant=interpolant, tangents=tangents, total=total)
        self.draws = draws

    def randn_like(self, x: Tensor, name: str | None = None) -> Tensor:
        assert name is not None
        assert self.draws[name].shape == x.shape
        return self.draws[name]

    def times(self, layout: Layout, sampler: TimeSampler, name: str = "t") -> Tensor:
        return self.draws[name]


def draws(like: Tensor, batch_size: int, seed: int = 0) -> dict[str, Tensor]:
    """Times away from both ends, and noise."""
    g = torch.Generator().manual_seed(seed)
    found = {name: torch.randn(like.shape, generator=g, dtype=like.dtype) for name in ("noise", "noise_fake")}
    return found | {"t": 0.1 + 0.85 * torch.rand(batch_size, generator=g, dtype=like.dtype)}


def ring_batch() -> Batch:
    """Six points with a class each, for ``RING``."""
    g = torch.Generator().manual_seed(1)
    tokens = torch.nn.functional.one_hot(torch.randint(8, (6,), generator=g), 8).double()
    return Batch(torch.randn(6, 2, generator=g, dtype=torch.float64), Dense(6), Condition(tokens))


def random_student(config: ToyConfig, seed: int = 0) -> ToyFlow:
    """A small student with all weights random, the second time's included, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        student = ToyFlow(config.model_copy(update={"width": 24, "depth": 3})).double()
        nn.init.normal_(student.jump.weight, std=0.3)
    return student


def exact_nets(student: nn.Module, config: ToyConfig = GAUSSIAN) -> Nets:
    """A student beside the exact teacher, in float64."""
    return Nets({"student": student, "teacher": Teacher(AnalyticFlow(config).double())}, {})


def gaussian_batch(count: int, seed: int = 0) -> Batch:
    """Points [count, 2] of the single Gaussian in float64, unconditional."""
    flow = AnalyticFlow(GAUSSIAN).double()
    labels = torch.zeros(count, dtype=torch.int64)
    return Batch(flow.mixture.sample(labels, torch.Generator().manual_seed(seed)), Dense(count))


class PhasedMap(Backbone):
    """The exact average velocity of a Gaussian down to ``end_B`` [B], which the test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.map = GaussianMap(GAUSSIAN).double()
        self.end_B = torch.zeros(1)

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        return cast(Tensor, self.map(x, t_B, cond, layout, s_B=self.end_B))


class PolynomialStudent(Backbone):
    """F(x, t) = A(t) x + B(t), both polynomials: the exact answer of a Gaussian has this form but for the degree."""

    def __init__(self, degree: int = 6) -> None:
        super().__init__()
        self.degree = degree
        self.a = nn.Parameter(torch.zeros(degree + 1, dtype=torch.float64))
        self.b = nn.Parameter(torch.zeros(degree + 1, 2, dtype=torch.float64))

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        t = t_B.to(x.dtype)
        basis = torch.stack([t**k for k in range(self.degree + 1)], 1)
        return (basis @ self.a)[:, None] * x + basis @ self.b


def total(losses: dict[str, Tensor]) -> Tensor:
    """What the engine minimises."""
    return torch.stack(list(means(losses).values())).sum()


def gradients(losses: dict[str, Tensor], module: nn.Module) -> list[Tensor]:
    """Of the summed losses, for every parameter; zeros where none arrives."""
    parameters = list(module.parameters())
    found = torch.autograd.grad(total(losses), parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]


def largest(a: Any, b: Any) -> float:
    """The largest absolute difference of two tensors or lists of them."""
    if isinstance(a, Tensor):
        return float((a - b).detach().abs().max())
    return max(largest(x, y) for x, y in zip(a, b, strict=True))
