"""Drifting: the published sums one by one, and samples that have the distribution of the data."""

from __future__ import annotations

import math

import pytest
import torch
from closed_forms import Given, gradients, largest, total
from distribution_helpers import LinearStudent, tiny_nets
from fewstep_distribution.config import DriftingConfig
from fewstep_distribution.drifting import Drifting, drifts
from torch import Tensor

from fewstep.core.batch import Batch, Condition
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense
from fewstep.core.objective import Nets, Step
from fewstep.testing import check_objective, tiny_batch


def by_hand(
    own: list[Tensor], data: list[Tensor], alike: list[list[bool]], temperature: float
) -> tuple[float, list[Tensor]]:
    """The unit of length and each sample's drift for one temperature; pairs that are not alike have distance + 100."""
    count, both = len(own), own + data

    def near(i: int, j: int) -> bool:
        return alike[i][j % count]

    pairs = [(i, j) for i in range(count) for j in range(2 * count)]
    gaps = {(i, j): float((own[i] - both[j]).norm()) if near(i, j) else 0.0 for i, j in pairs}
    mean = sum(gaps.values()) / sum(near(*pair) for pair in pairs)
    odd = {(i, j): 0 if near(i, j) and i != j else 1 for i, j in pairs}
    weight = {pair: math.exp(-(gaps[pair] / mean + 100 * odd[pair]) / temperature) for pair in pairs}
    row = [sum(weight[i, j] for j in range(2 * count)) for i in range(count)]
    column = [sum(weight[i, j] for i in range(count)) for j in range(2 * count)]
    share = {
        (i, j): max(1e-6, weight[i, j] / row[i] * (weight[i, j] / column[j] if column[j] else 0)) ** 0.5 * near(i, j)
        for i, j in pairs
    }
    unit = mean / math.sqrt(sum(x.numel() for x in own) / count)
    forces = []
    for i in range(count):
        p, n = (sum(share[i, j] for j in part) for part in (range(count, 2 * count), range(count)))
        force = torch.zeros_like(own[i])
        for j in range(2 * count):
            if near(i, j):
                force = force + (n if j >= count else -p) * share[i, j] * (both[j] - own[i]) / unit
        forces.append(force)
    size = math.sqrt(sum(float(f.square().sum()) for f in forces) / sum(f.numel() for f in forces))
    return unit, [force / size for force in forces]


@pytest.mark.parametrize("lengths", [(4, 4, 4, 4), (2, 5, 2, 2)], ids=["dense", "ragged"])
def test_loss_and_gradient_are_the_published_ones(lengths: tuple[int, ...]) -> None:
    """The last sample has another condition than the first three; the second one's is dropped for the student alone."""
    batch, nets = tiny_batch(lengths, packed=len(set(lengths)) > 1), tiny_nets()
    tokens = torch.tensor([[0.1, 0.2]] * 3 + [[0.3, 0.2]], dtype=torch.float64)
    batch = Batch(batch.x0, batch.layout, Condition(tokens))
    noise = torch.randn(batch.x0.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    config = DriftingConfig(temperatures=(0.2, 1.0), p_uncond=0.5)
    given = {"noise_fake": noise, "drop/fake": torch.tensor([0.9, 0.1, 0.6, 0.7])}
    losses = Drifting(config).loss(batch, nets, Given(given))

    def one(x: Tensor, i: int) -> Tensor:
        return batch.layout.select(x, torch.tensor([i]))[0].reshape(1, -1, 3)

    one_B, xs = torch.ones(1, dtype=torch.float64), []
    for i in range(4):
        z = one(noise, i)
        xs.append(
            z - nets.student(z, one_B, Condition(0 * tokens[i : i + 1] if i == 1 else tokens[i : i + 1]), Dense(1))
        )
    own, data = ([x.detach().reshape(-1) for x in found] for found in (xs, [one(batch.x0, i) for i in range(4)]))
    alike = [[lengths[i] == lengths[j] and (i < 3) == (j < 3) for j in range(4)] for i in range(4)]
    found = [by_hand(own, data, alike, t) for t in config.temperatures]
    unit = found[0][0]
    goals = [x / unit + sum(drift[i] for _, drift in found) for i, x in enumerate(own)]
    wanted = torch.stack(
        [(x.reshape(-1) / unit - goal).square().mean() for x, goal in zip(xs, goals, strict=True)]
    ).mean()
    assert float(total(losses).detach()) == pytest.approx(float(wanted.detach()), rel=1e-9)
    theirs = torch.autograd.grad(wanted, list(nets.student.parameters()))
    assert largest(gradients(losses, nets.student), theirs) < 1e-9
    assert max(float(x.abs().max()) for x in theirs) > 1e-3


def mean_drift(shift: float) -> float:
    """Along the first axis, of standard normal samples whose mean is off by this much, over 20 batches."""
    g, count, found = torch.Generator().manual_seed(0), 100, []
    alike, sizes_B = torch.ones(count, count, dtype=torch.bool), torch.full((count,), 2)
    for _ in range(20):
        own, data = (torch.randn(count, 2, generator=g, dtype=torch.float64) for _ in range(2))
        own[:, 0] += shift
        found.append(float(drifts(own, data, sizes_B, alike, (0.2,))[1][:, 0].mean()))
    return sum(found) / len(found)


def test_equal_distributions_stay_and_others_are_drawn_back() -> None:
    """The drift is antisymmetric in data and samples, so it vanishes on average where they are alike."""
    assert abs(mean_drift(0.0)) < 0.15
    assert mean_drift(1.0) < -0.6
    assert mean_drift(-1.0) > 0.6


def test_a_student_learns_the_mean_and_the_width() -> None:
    student = LinearStudent((0.3, 0.3), (1.0, -1.0))
    nets, g = Nets({"student": student}, {}), torch.Generator().manual_seed(0)
    adam = torch.optim.Adam(student.parameters(), 0.05)
    for i in range(150):
        batch = Batch(torch.randn(128, 2, generator=g, dtype=torch.float64), Dense(128))
        adam.zero_grad()
        total(Drifting(DriftingConfig(temperatures=(0.2,))).loss(batch, nets, Step(i, Interpolant()))).backward()
        adam.step()
    assert largest(student.mean, torch.zeros(2)) < 0.25
    assert largest(student.scale.abs(), torch.ones(2)) < 0.25


def test_an_empty_sample_has_no_loss() -> None:
    batch = tiny_batch((3, 0, 2), packed=True)
    term = Drifting(DriftingConfig()).loss(batch, tiny_nets(), Step(0, Interpolant()))["drifting"]
    assert term[1] == 0
    assert bool(term.isfinite().all())


def test_conformance() -> None:
    check_objective(Drifting, DriftingConfig(p_uncond=0.5), coupled=True)
