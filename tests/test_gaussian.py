"""VM, VD and their samplers against a Gaussian target, whose exact transport is known in closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from closed_forms import (
    GAUSSIAN,
    Given,
    PhasedMap,
    PolynomialStudent,
    draws,
    exact_nets,
    gaussian_batch,
    gradients,
    largest,
    total,
)
from fewstep_consistency.cm import Consistency, PhasedConsistency
from fewstep_consistency.config import ConsistencyConfig, PhasedConfig
from fewstep_mdt.config import MDTConfig, VMConfig
from fewstep_mdt.vd import MDT, VelocityDistillation
from fewstep_mdt.vm import VelocityMatching
from fewstep_toy.analytic import GaussianMap
from torch import Tensor

from fewstep.core.backbone import Backbone
from fewstep.core.batch import Batch
from fewstep.core.interpolant import Interpolant
from fewstep.core.objective import Objective, Step, means
from fewstep.core.times import TimeSampler
from fewstep.methods.point import Look, PointConfig
from fewstep.methods.residual import Derivative, phase_end

PLAIN: dict[str, Any] = {"guidance_vm": 0.0, "d_norm": "none", "t": TimeSampler(kind="uniform")}
FAKE: dict[str, Any] = {**PLAIN, "guidance_vd": 0.0, "lambda_vd": 1.0}


@pytest.fixture
def exact() -> GaussianMap:
    return GaussianMap(GAUSSIAN).double()


@pytest.fixture
def batch() -> Batch:
    return gaussian_batch(64)


def worst(objective: Any, student: Backbone, batch: Batch) -> float:
    """The largest |prediction - target|."""
    found = objective.targets(batch, exact_nets(student), Given(draws(batch.x0, 64)))
    return largest(found.v_pred, found.v_tgt)


@pytest.mark.parametrize("sigma_min", [0.0, 0.05])
def test_exact_transport_has_no_continuous_residual(batch: Batch, sigma_min: float) -> None:
    config = GAUSSIAN.model_copy(update={"sigma_min": sigma_min})
    nets = exact_nets(GaussianMap(config).double(), config)
    step = Given(draws(batch.x0, 64), interpolant=Interpolant(sigma_min))
    found = VelocityMatching(VMConfig(kind="continuous", **PLAIN)).targets(batch, nets, step)
    assert largest(found.v_pred, found.v_tgt) < 1e-12
    assert float(found.v_pred.detach().abs().max()) > 1


def test_discrete_residual_of_exact_transport_is_first_order(exact: GaussianMap, batch: Batch) -> None:
    errors = [worst(VelocityMatching(VMConfig(interval=d, **PLAIN)), exact, batch) for d in (0.02, 0.01, 0.005)]
    assert 1.8 < errors[0] / errors[1] < 2.2
    assert 1.9 < errors[1] / errors[2] < 2.1
    assert errors[2] < 0.05


@pytest.mark.parametrize("multiphase", [1, 2])
def test_an_euler_difference_has_the_gradient_of_consistency_distillation(batch: Batch, multiphase: int) -> None:
    """D times it: r has t - D in place of t, and the pseudo-Huber distance c / D in place of c."""
    own = {"loss": "pseudo-huber", "huber": 0.3, "difference": "euler", "reduction": "sample"}
    ours = VelocityMatching(VMConfig(interval=0.1, multiphase=multiphase, **own, **PLAIN))
    shared = {"interval": 0.1, "huber": 0.03, "weight": "velocity", "guidance": 0.0, "t": TimeSampler(kind="uniform")}
    theirs = (
        Consistency(ConsistencyConfig(**shared))
        if multiphase == 1
        else PhasedConsistency(PhasedConfig(phases=multiphase, **shared))
    )
    student, step = PolynomialStudent(), Given(draws(batch.x0, 64))
    torch.nn.init.normal_(student.a, std=0.5)
    torch.nn.init.normal_(student.b, std=0.5)
    found = [gradients(each.loss(batch, exact_nets(student), step), student) for each in (ours, theirs)]
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, 0.1 * other, rtol=1e-9, atol=1e-12)
    assert max(float(gradient.abs().max()) for gradient in found[0]) > 1e-3


def test_a_wrong_transport_has_a_residual(exact: GaussianMap, batch: Batch) -> None:
    exact.std *= 1.1
    assert worst(VelocityMatching(VMConfig(kind="continuous", **PLAIN)), exact, batch) > 0.05


def test_own_velocity_of_exact_transport_is_the_teachers(exact: GaussianMap, batch: Batch) -> None:
    step, nets = Given(draws(batch.x0, 64)), exact_nets(exact)
    point = Look(PointConfig(), Derivative("continuous"), 0.0).at(batch, nets, step)
    own = point.residual.instantaneous(point.span)
    assert largest(own, nets.teacher(point.x_t, point.t_B, batch.cond, batch.layout)) < 1e-12
    assert largest(point.residual.value, own) > 0.1  # the average velocity is another one


def test_distillation_gradient_vanishes_at_the_exact_transport(batch: Batch) -> None:
    objective = VelocityDistillation(MDTConfig(kind="continuous", **FAKE))

    def size(mean: float) -> float:
        student = GaussianMap(GAUSSIAN).double()
        student.mean.data += mean
        loss = means(objective.loss(batch, exact_nets(student), Given(draws(batch.x0, 64))))
        return max(float(g.abs().max()) for g in gradients(loss, student))

    assert size(0.0) < 1e-12
    assert size(0.1) > 1e-3


def test_distillation_pulls_the_students_samples_to_the_target(batch: Batch) -> None:
    """Descent on VD alone moves a shifted transport back: its gradient has the sign of the shift."""
    objective = VelocityDistillation(MDTConfig(kind="continuous", **FAKE))
    for shift in (0.3, -0.3):
        student = GaussianMap(GAUSSIAN).double()
        student.mean.data += shift
        (gradient,) = gradients(objective.loss(batch, exact_nets(student), Given(draws(batch.x0, 64))), student)
        assert bool((gradient.sign() == (1 if shift > 0 else -1)).all())


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
@pytest.mark.parametrize("method", ["vm", "vm+vd"])
def test_training_recovers_the_mean(kind: str, method: str) -> None:
    """Where the exact answer is within reach, it is reached."""
    student = GaussianMap(GAUSSIAN).double()
    truth = student.mean.detach().clone()
    student.mean.data.zero_()
    fit(student, objective_of(method, kind, interval=0.005), iterations=150, rate=5e-2)
    assert largest(student.mean, truth) < (2e-3 if kind == "continuous" else 2e-2)


def objective_of(method: str, kind: str, interval: float = 0.01) -> Objective[Any]:
    if method == "vm":
        return VelocityMatching(VMConfig(kind=kind, interval=interval, **PLAIN))
    return MDT(MDTConfig(kind=kind, interval=interval, **FAKE))


def fit(student: Backbone, objective: Objective[Any], iterations: int, rate: float) -> None:
    """Adam with a rate that falls to 0, on fresh points."""
    nets, adam = exact_nets(student), torch.optim.Adam(student.parameters(), rate)
    for i in range(iterations):
        adam.param_groups[0]["lr"] = rate * (1 - i / iterations)
        adam.zero_grad()
        total(objective.loss(gaussian_batch(128, 100 + i), nets, Step(i, Interpolant()))).backward()
        adam.step()


def transport_error(student: Backbone, t: float) -> float:
    """Root mean square of F - F* at a time."""
    batch, exact = gaussian_batch(512, 9), GaussianMap(GAUSSIAN).double()
    noise = draws(batch.x0, 512, seed=5)["noise"]
    t_B = torch.full((512,), t, dtype=torch.float64)
    x_t = Interpolant().interpolate(batch.x0, noise, t_B, batch.layout)
    with torch.no_grad():
        error: Tensor = student(x_t, t_B, batch.cond, batch.layout) - exact(x_t, t_B, batch.cond, batch.layout)
    return float(error.square().mean().sqrt())


@pytest.mark.parametrize(("method", "kind"), [("vm", "continuous"), ("vm", "discrete"), ("vm+vd", "continuous")])
def test_training_converges_to_the_exact_transport(method: str, kind: str) -> None:
    student = PolynomialStudent()
    before = [transport_error(student, t) for t in (0.5, 1.0)]
    fit(student, objective_of(method, kind), iterations=150, rate=2e-2)
    early = [transport_error(student, t) for t in (0.5, 1.0)]
    fit(student, objective_of(method, kind), iterations=600, rate=2e-2)
    after = [transport_error(student, t) for t in (0.5, 1.0)]
    assert after[1] < early[1] < before[1]
    assert after[1] < min(0.03, before[1] / 20)
    assert after[0] < min(0.15, before[0] / 4)


@pytest.mark.parametrize("weight", ["none", "velocity"])
def test_exact_transport_is_consistent(exact: GaussianMap, batch: Batch, weight: str) -> None:
    config = ConsistencyConfig(kind="continuous", loss="l2", guidance=0.0, weight=weight)
    loss = means(Consistency(config).loss(batch, exact_nets(exact), Given(draws(batch.x0, 64))))
    assert float(total(loss).detach()) < 1e-24


@pytest.mark.parametrize("phases", [1, 2, 4])
def test_phased_jumps_agree_to_second_order(batch: Batch, phases: int) -> None:
    """The teacher's step of D is an Euler step: two jumps of the exact phased transport differ by O(D^2)."""
    errors = []
    for interval in (0.02, 0.01):
        given, student = draws(batch.x0, 64), PhasedMap()
        given["t"] = (given["t"] * 8).floor() / 8 + 0.06  # away from phase ends for both intervals
        objective = PhasedConsistency(PhasedConfig(phases=phases, interval=interval, guidance=0.0, loss="l2"))
        t_B = objective.look(Given(given)).times(batch, Given(given))
        student.end_B = phase_end(t_B - interval, phases)
        jump, target, _ = objective.jumps(batch, exact_nets(student), Given(given))
        errors.append(largest(jump, target))
    assert 3.0 < errors[0] / errors[1] < 5.0
    assert errors[1] < 2e-3
