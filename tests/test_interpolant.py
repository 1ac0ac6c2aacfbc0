"""The interpolant, time samplers and step grids, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from closed_forms import largest
from torch import Tensor

from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense, Packed
from fewstep.core.times import TimeSampler, rescale, step_grid

SIGMAS = (0.0, 1e-5, 0.1)
LAYOUT = Dense(7)


@pytest.fixture
def drawn() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(7, 3, 2, generator=g, dtype=torch.float64) for _ in range(2))
    return x0, eps, torch.linspace(0.05, 0.95, 7, dtype=torch.float64)


@pytest.mark.parametrize("sigma_min", SIGMAS)
def test_both_ends_come_back(drawn: tuple[Tensor, Tensor, Tensor], sigma_min: float) -> None:
    (x0, eps, t_B), path = drawn, Interpolant(sigma_min)
    x_t, v = path.interpolate(x0, eps, t_B, LAYOUT), path.velocity(x0, eps)
    assert largest(path.x0(x_t, v, t_B, LAYOUT), x0) < 1e-12
    assert largest(path.eps(x_t, v, t_B, LAYOUT), eps) < 1e-12


@pytest.mark.parametrize("sigma_min", SIGMAS)
def test_velocity_is_the_derivative(drawn: tuple[Tensor, Tensor, Tensor], sigma_min: float) -> None:
    (x0, eps, t_B), path = drawn, Interpolant(sigma_min)
    slope = torch.func.jvp(lambda t: path.interpolate(x0, eps, t, LAYOUT), (t_B,), (torch.ones_like(t_B),))[1]
    assert largest(slope, path.velocity(x0, eps)) < 1e-12


def test_the_ends_of_the_path(drawn: tuple[Tensor, Tensor, Tensor]) -> None:
    x0, eps, _ = drawn
    zeros, ones = torch.zeros(7, dtype=torch.float64), torch.ones(7, dtype=torch.float64)
    assert torch.equal(Interpolant().interpolate(x0, eps, zeros, LAYOUT), x0)
    assert torch.equal(Interpolant().interpolate(x0, eps, ones, LAYOUT), eps)
    assert largest(Interpolant(0.1).interpolate(x0, eps, zeros, LAYOUT), x0 + 0.1 * eps) < 1e-15
    assert largest(Interpolant(0.1).interpolate(x0, eps, ones, LAYOUT), eps) < 1e-15


def test_packed_is_dense(drawn: tuple[Tensor, Tensor, Tensor]) -> None:
    (x0, eps, t_B), path, packed = drawn, Interpolant(0.1), Packed.of_lengths([3] * 7)
    dense = path.interpolate(x0, eps, t_B, LAYOUT)
    assert torch.equal(path.interpolate(x0.flatten(0, 1), eps.flatten(0, 1), t_B, packed), dense.flatten(0, 1))


def test_grid() -> None:
    assert step_grid(1) == [1.0, 0.0]
    assert step_grid(4) == [1.0, 0.75, 0.5, 0.25, 0.0]
    warped = step_grid(4, 3.0)
    assert warped == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])
    assert rescale(rescale(0.3, 3.0), 1 / 3.0) == pytest.approx(0.3)


@pytest.mark.parametrize(
    "sampler", [TimeSampler(kind="uniform"), TimeSampler(mean=1.0, std=1.0), TimeSampler(mean=-0.4)]
)
def test_times_have_their_distribution(sampler: TimeSampler) -> None:
    drawn = sampler.draw(20000, torch.Generator().manual_seed(0))
    assert bool(((drawn > 0) & (drawn < 1)).all())
    centre = 0.5 if sampler.kind == "uniform" else 1 / (1 + math.exp(-sampler.mean))
    assert float(drawn.median()) == pytest.approx(centre, abs=0.01)
    spread = drawn if sampler.kind == "uniform" else torch.logit(drawn)
    assert float(spread.std()) == pytest.approx(1 / 12**0.5 if sampler.kind == "uniform" else sampler.std, rel=0.02)
