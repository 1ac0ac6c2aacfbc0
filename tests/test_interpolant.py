"""The path and its conversions, against closed forms and against the other conventions' own definitions."""

from __future__ import annotations

import math

import pytest
import torch
from closed_forms import GAUSSIAN, largest
from fewstep_toy.analytic import AnalyticFlow
from torch import Tensor

from fewstep.core.batch import Condition
from fewstep.core.interpolant import FOREIGN, Interpolant, from_foreign_time, to_foreign_time
from fewstep.core.layout import Dense, Packed
from fewstep.core.times import TimeSampler, rescale, step_grid
from fewstep.errors import FewstepError

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


@pytest.mark.parametrize("sigma_min", SIGMAS)
def test_predictions_become_velocity(drawn: tuple[Tensor, Tensor, Tensor], sigma_min: float) -> None:
    (x0, eps, t_B), path = drawn, Interpolant(sigma_min)
    x_t, v = path.interpolate(x0, eps, t_B, LAYOUT), path.velocity(x0, eps)
    for kind, prediction in {"x0": x0, "eps": eps, "velocity": v}.items():
        assert largest(path.to_velocity(prediction, kind, x_t, t_B, LAYOUT), v) < 1e-11
    with pytest.raises(FewstepError, match="did you mean 'velocity'"):
        path.to_velocity(v, "velocty", x_t, t_B, LAYOUT)


def test_packed_is_dense(drawn: tuple[Tensor, Tensor, Tensor]) -> None:
    (x0, eps, t_B), path, packed = drawn, Interpolant(0.1), Packed.of_lengths([3] * 7)
    dense = path.interpolate(x0, eps, t_B, LAYOUT)
    assert torch.equal(path.interpolate(x0.flatten(0, 1), eps.flatten(0, 1), t_B, packed), dense.flatten(0, 1))


def foreign(kind: str, time: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma by each convention's own definition."""
    if kind == "edm":
        return torch.ones_like(time), time
    if kind == "vp":
        return time, (1 - time.square()).sqrt()
    return time.cos(), time.sin()


TIMES = {
    "edm": torch.tensor([0.002, 0.3, 1.0, 7.0, 80.0], dtype=torch.float64),
    "vp": torch.tensor([0.9999, 0.9, 0.5, 0.1, 0.01], dtype=torch.float64),
    "trigflow": torch.tensor([0.001, 0.3, 0.8, 1.2, 1.57], dtype=torch.float64),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_states_lie_on_our_line(kind: str) -> None:
    time = TIMES[kind]
    alpha, sigma = foreign(kind, time)
    t, factor = from_foreign_time(kind, time)
    g = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 5, 2, generator=g, dtype=torch.float64)
    theirs = alpha[:, None] * x0 + sigma[:, None] * eps
    assert largest(factor[:, None] * theirs, Interpolant().interpolate(x0, eps, t, Dense(5))) < 1e-13
    assert bool(((t > 0) & (t < 1)).all())
    assert float((to_foreign_time(kind, t) / time - 1).abs().max()) < 1e-10


@pytest.mark.parametrize("kind", FOREIGN)
def test_ends_of_foreign_paths(kind: str) -> None:
    data = {"edm": 0.0, "vp": 1.0, "trigflow": 0.0}[kind]
    assert to_foreign_time(kind, torch.zeros(1)).item() == data
    t, factor = from_foreign_time(kind, torch.tensor([data]))
    assert (t.item(), factor.item()) == (0.0, 1.0)
    if kind != "edm":  # sigma of EDM is infinite at t = 1
        noise = {"vp": 0.0, "trigflow": math.pi / 2}[kind]
        assert to_foreign_time(kind, torch.ones(1)).item() == pytest.approx(noise)
        assert from_foreign_time(kind, torch.tensor([noise]))[0].item() == pytest.approx(1.0)


def test_unknown_path() -> None:
    for call in (from_foreign_time, to_foreign_time):
        with pytest.raises(FewstepError, match="accepted are edm, trigflow, vp"):
            call("ddpm", torch.zeros(1))


def posterior_mean(x: Tensor, alpha: Tensor, sigma: Tensor, mean: Tensor, std: float) -> Tensor:
    """E[x0 | alpha x0 + sigma eps] for x0 ~ N(mean, std^2)."""
    gain = alpha * std**2 / (alpha.square() * std**2 + sigma.square())
    return mean + gain[:, None] * (x - alpha[:, None] * mean)


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_denoiser_becomes_the_exact_velocity(kind: str) -> None:
    """The best network of each convention, in its own parametrisation, is on our side the exact velocity of a Gaussian:
    EDM predicts x0, VP eps, TrigFlow dx/dt = cos eps - sin x0."""
    flow = AnalyticFlow(GAUSSIAN).double()
    time, layout = TIMES[kind][1:4], Dense(3)
    t, factor = from_foreign_time(kind, time)
    alpha, sigma = foreign(kind, time)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs = x / factor[:, None]
    x0 = posterior_mean(theirs, alpha, sigma, flow.means[0], flow.std)
    eps = (theirs - alpha[:, None] * x0) / sigma[:, None]
    if kind == "edm":
        velocity = Interpolant().to_velocity(x0, "x0", x, t, layout)
    elif kind == "vp":
        velocity = Interpolant().to_velocity(eps, "eps", x, t, layout)
    else:
        tangent = alpha[:, None] * eps - sigma[:, None] * x0
        velocity = Interpolant().to_velocity(alpha[:, None] * theirs - sigma[:, None] * tangent, "x0", x, t, layout)
    assert largest(velocity, flow(x, t, Condition(), layout)) < 1e-11


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
