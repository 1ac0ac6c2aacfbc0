"""Inductive moment matching: the paper's sums group by group, and the exact flow map."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from closed_forms import GAUSSIAN, RING, Given, exact_nets, gaussian_batch, gradients, largest, random_student, total
from fewstep_flowmaps.config import IMMConfig
from fewstep_flowmaps.imm import MomentMatching
from fewstep_toy.analytic import GaussianMap
from torch import Tensor

from fewstep.core.batch import Batch, Condition
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense, Layout, Packed
from fewstep.core.objective import Step
from fewstep.testing import check_objective

LENGTHS = [2, 2, 1, 2, 2]  # groups of three: the third sample is of another size than the others of its group


@pytest.mark.parametrize("velocity", ["teacher", "data"])
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "ragged"])
def test_loss_and_gradient_are_the_papers(packed: bool, velocity: Any) -> None:
    g, count = torch.Generator().manual_seed(1), len(LENGTHS)
    layout: Layout = Packed.of_lengths(LENGTHS) if packed else Dense(count)
    x0 = torch.randn(sum(LENGTHS) if packed else count, 2, generator=g, dtype=torch.float64)
    noise = torch.randn(x0.shape, generator=g, dtype=torch.float64)
    tokens = torch.nn.functional.one_hot(torch.tensor([0, 3, 5, 1, 1]), 8).double()
    given = {
        "t": torch.tensor([0.7, 0.1, 0.2, 0.9, 0.3], dtype=torch.float64),
        "s": torch.tensor([0.4, 0.9, 0.8, 0.02, 0.1], dtype=torch.float64),
        "noise": noise,
    }
    student = random_student(RING)
    config = IMMConfig(particles=3, gap=0.3, bias=4.0, power=2.0, velocity=velocity, reduction="sample")
    nets = exact_nets(student, RING)
    losses = MomentMatching(config).loss(Batch(x0, layout, Condition(tokens)), nets, Given(given))

    terms = []
    for group in ([0, 1, 2], [3, 4]):
        t, one = float(given["t"][group[0]]), torch.ones(1, dtype=torch.float64)
        s = t * float(given["s"][group[0]])
        eta = t / (1 - t) - 0.3
        r = max(s, eta / (1 + eta))
        ys: list[Tensor] = []
        zs: list[Tensor] = []
        for i in group:
            data, eps = (layout.select(x, torch.tensor([i]))[0][None] for x in (x0, noise))
            cond, x_t = Condition(tokens[i : i + 1]), (1 - t) * data + t * eps
            ys.append(x_t - (t - s) * student(x_t, t * one, cond, Dense(1), s_B=s * one))
            v = eps - data if velocity == "data" else nets.teacher(x_t, t * one, cond, Dense(1))
            x_r = x_t - (t - r) * v
            zs.append((x_r - (r - s) * student(x_r, r * one, cond, Dense(1), s_B=s * one)).detach())

        def k(a: Tensor, b: Tensor, width: float = t - s) -> Tensor:
            norm = (a - b).square().sum().clamp(min=1e-16).sqrt()
            return torch.exp(-norm / (a.numel() * width))

        def slope(t: float) -> float:
            return 2 / (t * (1 - t))  # minus the derivative of the log SNR

        snr = 2 * math.log((1 - t) / t)
        weight = 0.5 / (1 + math.exp(snr - 4.0)) * slope(t) * (1 - t) ** 2 / (t**2 + (1 - t) ** 2)
        for j, (y, z) in enumerate(zip(ys, zs, strict=True)):
            others = [i for i in range(len(group)) if ys[i].shape == y.shape]
            near = [k(y, ys[i]) + k(z, zs[i]) - 2 * k(y, zs[i]) for i in others]
            assert j in others
            terms.append(weight * torch.stack(near).mean())
    wanted = torch.stack(terms).mean()
    assert float(total(losses).detach()) == pytest.approx(float(wanted.detach()), rel=1e-9)
    theirs = gradients({"paper": wanted}, student)
    assert largest(gradients(losses, student), theirs) < 1e-10
    assert max(float(x.abs().max()) for x in theirs) > 1e-3


def exact_loss(gap: float, shift: float = 0.0) -> float:
    student = GaussianMap(GAUSSIAN).double()
    student.mean.data += shift
    objective = MomentMatching(IMMConfig(gap=gap, guidance=0.0))
    losses = objective.loss(gaussian_batch(64), exact_nets(student), Step(0, Interpolant(), seed=3))
    return float(total(losses).detach())


def test_an_exact_flow_map_has_the_bias_of_one_euler_step() -> None:
    """The step from t to r errs in second order, and the kernel has a corner at 0: the loss falls fourfold."""
    losses = [exact_loss(gap) for gap in (0.02, 0.01, 0.005)]
    assert losses[0] < 3e-3
    assert 3 < losses[0] / losses[1] < 5
    assert 3 < losses[1] / losses[2] < 5
    assert exact_loss(0.005, shift=0.3) > 20 * losses[2]


def test_times_are_a_groups_own() -> None:
    objective = MomentMatching(IMMConfig(particles=4))
    t_B, s_B = objective.ends(Batch(torch.zeros(10, 2), Dense(10)), Step(0, Interpolant()))
    assert [len(set(times[i : i + 4].tolist())) for times in (t_B, s_B) for i in (0, 4, 8)] == [1] * 6
    assert len(set(t_B.tolist())) == 3
    assert bool((s_B <= t_B).all())


@pytest.mark.parametrize("t", [1.0, 0.9999])
def test_the_earlier_time_of_pure_noise_is_that_of_the_largest_ratio(t: float) -> None:
    """A ratio beyond 160 counts as 160: r / (1 - r) = 160 - gap, where 1 / (1 - t) would divide by 0."""
    r = float(MomentMatching(IMMConfig(gap=2.0)).before(torch.tensor([t], dtype=torch.float64)))
    assert r / (1 - r) == pytest.approx(158)


@pytest.mark.parametrize("keys", [{}, {"particles": 1}, {"velocity": "data", "p_uncond": 0.3}])
def test_conformance(keys: dict[str, Any]) -> None:
    check_objective(MomentMatching, IMMConfig(**keys), coupled=True)
