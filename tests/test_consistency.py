"""Consistency distillation as an instance of the shared residual, and what its keys do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from closed_forms import (
    GAUSSIAN,
    RING,
    Given,
    draws,
    exact_nets,
    gaussian_batch,
    gradients,
    largest,
    random_student,
    ring_batch,
    total,
)
from fewstep_consistency.cm import Consistency, PhasedConsistency
from fewstep_consistency.config import ConsistencyConfig, PhasedConfig
from fewstep_toy.analytic import AnalyticFlow
from pydantic import ValidationError
from torch import Tensor

from fewstep.core.backbone import Teacher
from fewstep.core.batch import Batch
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense, Packed
from fewstep.core.objective import Nets, Step, means
from fewstep.core.times import TimeSampler, step_grid
from fewstep.methods.distance import distance
from fewstep.methods.point import Look, PointConfig
from fewstep.methods.residual import Derivative, normalise, phase_end
from fewstep.plugins.registry import registry

L2: dict[str, Any] = {"loss": "l2", "reduction": "element", "interval": 0.03}
PLAIN: dict[str, Any] = {**L2, "weight": "none"}


@pytest.fixture
def batch() -> Batch:
    return ring_batch()


@pytest.fixture
def given(batch: Batch) -> Given:
    return Given(draws(batch.x0, 6))


def one_sample(i: int, batch: Batch, given: Given) -> tuple[Batch, Given]:
    """A batch of one, so that its weight in the mean does not hide an error."""
    rows = torch.tensor([i])
    return batch.select(rows), Given({name: value[rows] for name, value in given.draws.items()})


def test_the_jumps_are_those_of_a_consistency_model(batch: Batch, given: Given) -> None:
    """Made from the residual, they are x_t - t F(x_t, t) and x' - (t - D) F(x', t - D) at the teacher's point x'."""
    student = random_student(RING)
    nets = exact_nets(student, RING)
    jump, target, at = Consistency(ConsistencyConfig(guidance=1.5, **L2)).jumps(batch, nets, given)
    t = at.t_B[:, None]
    c, u = (nets.teacher.backbone(at.x_t, at.t_B, k, batch.layout) for k in (batch.cond, batch.cond.negative()))
    before = at.x_t - 0.03 * (2.5 * c - 1.5 * u)
    assert largest(jump, at.x_t - t * student(at.x_t, at.t_B, batch.cond, batch.layout)) < 1e-13
    plain = before - (t - 0.03) * student(before, at.t_B - 0.03, batch.cond, batch.layout)
    assert largest(target, plain) < 1e-13
    assert jump.requires_grad
    assert not target.requires_grad


@pytest.mark.parametrize("phases", [1, 4])
def test_the_difference_is_minus_D_times_the_velocity_residual(batch: Batch, given: Given, phases: int) -> None:
    """With t - e - D in place of t - e, to rounding."""
    nets = exact_nets(random_student(RING), RING)
    look = Look(PointConfig(), Derivative("discrete", 0.03), 2.0, phases)
    at = look.at(batch, nets, given)
    jump, target = at.residual.states(at.x_t, at.span, 0.03)
    residual = at.residual.value - at.residual.target(at.span - 0.03)
    assert largest(jump - target, -0.03 * residual) < 1e-15
    assert largest(residual, torch.zeros_like(residual)) > 1


def test_the_gradient_carries_the_weight_t_D(batch: Batch, given: Given) -> None:
    """Sample by sample, CD's gradient is t D that of || F - target ||^2 with the span t - D."""
    student = random_student(RING)
    nets, objective = exact_nets(student, RING), Consistency(ConsistencyConfig(**PLAIN))
    for i in range(6):
        sample, step = one_sample(i, batch, given)
        at = objective.point(sample, nets, step)
        matching = (at.residual.value - at.residual.target(at.span - 0.03).detach()).square().mean()
        expected = [float(at.t_B) * 0.03 * g for g in gradients({"vm": matching}, student)]
        ours = gradients(objective.loss(sample, nets, step), student)
        assert largest(ours, expected) < 1e-12
        assert max(float(g.abs().max()) for g in ours) > 1e-4


def test_weight_velocity_gives_velocity_matchings_gradient(batch: Batch, given: Given) -> None:
    student = random_student(RING)
    nets, objective = exact_nets(student, RING), Consistency(ConsistencyConfig(weight="velocity", **L2))
    at = objective.point(batch, nets, given)
    matching = (at.residual.value - at.residual.target(at.span - 0.03).detach()).square().mean()
    ours = gradients(objective.loss(batch, nets, given), student)
    assert largest(ours, gradients({"vm": matching}, student)) < 1e-12


def test_weight_interval_divides_by_it(batch: Batch, given: Given) -> None:
    nets = exact_nets(random_student(RING), RING)
    plain, weighted = (
        means(Consistency(ConsistencyConfig(weight=w, **L2)).loss(batch, nets, given))["cm"].item()
        for w in ("none", "interval")
    )
    assert weighted == pytest.approx(plain / 0.03)


@pytest.mark.parametrize("weight", ["none", "velocity"])
def test_continuous_is_the_limit_of_discrete(batch: Batch, given: Given, weight: str) -> None:
    """Gradients of CD over D approach those of the continuous form, in first order."""
    student = random_student(RING)
    nets = exact_nets(student, RING)

    def gradient(**settings: Any) -> list[Tensor]:
        objective = Consistency(ConsistencyConfig(loss="l2", **settings))
        low = settings.get("interval", 0.0)
        t_B = torch.full((6,), (0.5 - low) / (1 - low), dtype=torch.float64)  # all forms at t = 0.5
        return gradients(objective.loss(batch, nets, Given(given.draws | {"t": t_B})), student)

    limit = gradient(kind="continuous", weight=weight)
    near = {"none": "interval", "velocity": "velocity"}[weight]
    errors = [largest(gradient(interval=d, weight=near), limit) for d in (4e-3, 2e-3, 1e-3)]
    assert 1.7 < errors[0] / errors[1] < 2.3
    assert 1.7 < errors[1] / errors[2] < 2.3


def test_target_of_an_average(batch: Batch, given: Given) -> None:
    student, average = random_student(RING), random_student(RING, seed=5)
    config = ConsistencyConfig(target="ema", target_ema=0.9, guidance=2.0, **L2)
    assert Consistency(config).networks()["student"].ema == (0.9,)
    assert Consistency(ConsistencyConfig()).networks()["student"].ema == ()
    modules = {"student": student, "teacher": Teacher(AnalyticFlow(RING).double())}
    jump, target, at = Consistency(config).jumps(batch, Nets(modules, {("student", 0.9): average}), given)
    v = modules["teacher"](at.x_t, at.t_B, batch.cond, batch.layout)
    u = modules["teacher"](at.x_t, at.t_B, batch.cond.negative(), batch.layout)
    before = at.x_t - 0.03 * (3 * v - 2 * u)
    expected = before - (at.t_B - 0.03)[:, None] * average(before, at.t_B - 0.03, batch.cond, batch.layout)
    assert largest(target, expected) < 1e-13
    assert largest(jump, at.x_t - at.t_B[:, None] * student(at.x_t, at.t_B, batch.cond, batch.layout)) < 1e-13


def test_consistency_training_takes_neighbours_on_one_line(batch: Batch, given: Given) -> None:
    """velocity = "data": x' is the same sample and noise at t - D."""
    student = random_student(RING)
    _, target, at = Consistency(ConsistencyConfig(velocity="data", **L2)).jumps(batch, exact_nets(student, RING), given)
    earlier = at.t_B - 0.03
    before = Interpolant().interpolate(batch.x0, given.draws["noise"], earlier, batch.layout)
    assert largest(target, before - earlier[:, None] * student(before, earlier, batch.cond, batch.layout)) < 1e-13


def test_pseudo_huber() -> None:
    difference = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    ones = torch.ones(2, dtype=torch.float64)
    expected = ((12.5 + 0.25) ** 0.5 - 0.5) / 2
    assert distance(difference, ones, Dense(2), 0.5, "sample").mean().item() == pytest.approx(expected)
    assert distance(difference, ones, Dense(2), None, "sample").mean().item() == pytest.approx(12.5 / 2)
    assert distance(difference, 2 * ones, Dense(2), 0.5, "element").mean().item() == pytest.approx(2 * expected)


def test_pseudo_huber_by_element_weighs_longer_samples() -> None:
    layout = Packed.of_lengths([1, 3])
    difference = torch.tensor([[1.0], [0.0], [0.0], [0.0]], dtype=torch.float64)
    ones = torch.ones(2, dtype=torch.float64)
    root = (1 + 0.25) ** 0.5 - 0.5
    assert distance(difference, ones, layout, 0.5, "sample").mean().item() == pytest.approx(root / 2)
    assert distance(difference, ones, layout, 0.5, "element").mean().item() == pytest.approx(root / 4)


def test_phase_ends_lie_on_the_samplers_grid() -> None:
    objective = PhasedConsistency(PhasedConfig(phases=4, rescale_t=3.0))
    contract = objective.contract()
    assert (contract.sampler, contract.steps, contract.rescale_t) == ("euler", (4,), 3.0)
    t_B = torch.rand(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = sorted(set(phase_end(t_B, 4, 3.0).tolist()), reverse=True)
    assert ends == pytest.approx(step_grid(4, 3.0)[1:])
    assert bool((phase_end(t_B, 4, 3.0) <= t_B).all())


def test_a_phased_student_is_asked_where_it_was_trained() -> None:
    """At a phase end itself the student was trained to jump on to the next one: t - D decides."""
    ends = phase_end(torch.tensor([0.75, 0.5, 0.25], dtype=torch.float64) - 0.02, 4)
    assert ends.tolist() == [0.5, 0.25, 0.0]
    assert phase_end(torch.tensor([1.0 - 0.02, 1.0]), 4).tolist() == [0.75, 0.75]


def test_phases_reach_the_point_that_a_phased_student_is_trained_at() -> None:
    batch = gaussian_batch(64)
    at = PhasedConsistency(PhasedConfig(phases=4)).point(
        batch, exact_nets(random_student(GAUSSIAN)), Step(0, Interpolant())
    )
    assert set(at.end_B.tolist()) == {0.0, 0.25, 0.5, 0.75}


def test_contracts_and_refusals() -> None:
    assert Consistency(ConsistencyConfig()).contract().sampler == "consistency"
    assert Consistency(ConsistencyConfig(sampler="euler", rescale_t=2.0)).contract().rescale_t == 2.0
    assert Consistency(ConsistencyConfig(noise=0.4)).contract().sampling == "consistency:0.4"
    with pytest.raises(ValidationError, match="target must be 'student'"):
        ConsistencyConfig(kind="continuous", loss="l2", target="ema")
    with pytest.raises(ValidationError, match="loss 'l2' alone"):
        ConsistencyConfig(kind="continuous")
    with pytest.raises(ValidationError, match="no teacher that could be guided"):
        ConsistencyConfig(velocity="data", guidance=4.0)


@pytest.mark.parametrize("name", ["cm", "pcm"])
def test_registered(name: str, batch: Batch) -> None:
    entry = registry().get("objective", name)
    objective = entry.load()(entry.load_config()())
    losses = means(objective.loss(batch, exact_nets(random_student(RING), RING), Step(0, Interpolant())))
    assert list(losses) == [name]
    assert bool(total(losses).isfinite())


def test_normalisations() -> None:
    slope = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    assert torch.equal(normalise(slope, Dense(2), "none", 0.1), slope)
    assert largest(normalise(slope, Dense(2), "sample", 0.1), slope / 5.1) < 1e-15
    assert largest(normalise(slope, Dense(2), "element", 0.1), slope / (12.5**0.5 + 0.1)) < 1e-15


def test_published_norm_shrinks_with_size_and_the_elementwise_one_does_not() -> None:
    sizes = {}
    for count in (64, 32768):
        slope = torch.randn(1, count, generator=torch.Generator().manual_seed(0))
        for norm in ("sample", "element"):
            sizes[norm, count] = float(normalise(slope, Dense(1), norm, 0.1).square().mean().sqrt())
    assert sizes["sample", 32768] == pytest.approx(1 / 32768**0.5, rel=0.01)
    assert sizes["sample", 32768] < 0.0056
    assert sizes["element", 32768] == pytest.approx(1 / 1.1, rel=0.01)
    assert sizes["element", 64] == pytest.approx(1 / 1.1, rel=0.2)


def test_times_stay_where_the_residual_is_defined() -> None:
    u_B = torch.tensor([0.0, 0.5, 1.0])
    assert Derivative("discrete", 0.1).times(u_B, 0.01).tolist() == pytest.approx([0.11, 0.555, 1.0])
    assert Derivative("continuous", 0.1).times(u_B, 0.01).tolist() == pytest.approx([0.01, 0.505, 1.0])
    drawn = Derivative("discrete", 0.1).times(TimeSampler().draw(1000, torch.Generator().manual_seed(0)), 1e-5)
    assert float(drawn.min()) >= 0.1
    assert float(drawn.max()) <= 1.0
