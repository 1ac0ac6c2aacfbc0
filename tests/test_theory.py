"""The maps that methods converge to with a finite difference, against the engine's residual and a closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from fewstep_consistency.cm import Consistency
from fewstep_consistency.config import ConsistencyConfig
from fewstep_images.config import ImagesConfig
from fewstep_images.exact import ExactFlow
from fewstep_mdt.config import VMConfig
from fewstep_mdt.vm import VelocityMatching
from torch import Tensor

from benchmarks.quality.theory_exact import limits, slope, velocity_of
from benchmarks.quality.theory_students import LinearStudent, Method, MixtureFlow
from fewstep.core.backbone import Teacher
from fewstep.core.batch import Batch, Condition
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense
from fewstep.core.mixture import Mixture
from fewstep.core.objective import Nets, Objective, Step, means
from fewstep.core.samplers import heun
from fewstep.core.times import TimeSampler, step_grid
from fewstep.methods.residual import Derivative

pytest.importorskip("sklearn")
N, INTERVAL, LINE = 6, 0.1, Interpolant()
Field = Callable[[Tensor, Tensor], Tensor]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher(ExactFlow(ImagesConfig(smoothing=0.4)).double())


@pytest.fixture(scope="module")
def batch() -> Batch:
    noise = torch.randn(N, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Batch(noise, Dense(N), Condition(torch.eye(10, dtype=torch.float64)[:N]))


def bound(teacher: Teacher, batch: Batch) -> Field:
    """The teacher's velocity under the batch's condition."""

    def velocity(x: Tensor, t_B: Tensor) -> Tensor:
        found: Tensor = teacher(x, t_B, batch.cond, batch.layout)
        return found

    return velocity


def matched(velocity: Field, interval: float) -> Field:
    """What makes velocity matching's residual 0 on the grid of times k D: solved for F(x, t) from t = 0 upwards."""

    def average(x: Tensor, t_B: Tensor) -> Tensor:
        t = float(t_B[0])
        v = velocity(x, t_B)
        if t < interval / 2:
            return v
        return (interval * v + t * average(x - interval * v, t_B - interval)) / (t + interval)

    return average


def consistent(velocity: Field, interval: float) -> Field:
    """What makes consistency distillation's two jumps equal: Euler's method as an average velocity."""

    def average(x: Tensor, t_B: Tensor) -> Tensor:
        y, t = x, float(t_B[0])
        if t < interval / 2:
            return velocity(x, t_B)
        for i in range(round(t / interval)):
            y = y - interval * velocity(y, t_B - i * interval)
        return (x - y) / t

    return average


def test_limits_are_roots_of_the_engines_residual(teacher: Teacher, batch: Batch) -> None:
    velocity = bound(teacher, batch)
    knobs, step = Derivative("discrete", INTERVAL), Step(0, Interpolant())
    euler, vm = limits(velocity, batch.x0, INTERVAL)
    for field, end in ((matched(velocity, INTERVAL), vm), (consistent(velocity, INTERVAL), euler)):
        ones = torch.ones(N, dtype=torch.float64)
        assert torch.allclose(batch.x0 - field(batch.x0, ones), end, atol=1e-9)
        for k in (1, 4, 10):
            t_B = k * INTERVAL * ones
            at = knobs.residual(field, batch.x0, t_B, velocity(batch.x0, t_B), batch.layout, step)
            if end is vm:
                assert torch.allclose(at.value, at.target(batch.layout.expand(t_B, batch.x0)), atol=1e-9)
            else:
                jump, target = at.states(batch.x0, batch.layout.expand(t_B, batch.x0), INTERVAL)
                assert torch.allclose(jump, target, atol=1e-9)


def test_velocity_matching_adds_d_z_to_eulers_error(teacher: Teacher, batch: Batch) -> None:
    """To first order: what is left falls with D squared."""
    exact = exact_map(teacher, batch)
    left = []
    for interval in (0.02, 0.01):
        euler, vm = limits(bound(teacher, batch), batch.x0, interval)
        bias, first = vm - exact, euler - exact + interval * batch.x0
        left.append(float((bias - first).square().mean().sqrt()))
        assert slope(bias, first) == pytest.approx(1, abs=0.02)
        assert abs(slope(bias, euler - exact) - 1) > 0.1  # without D z it is told apart
    assert 3 < left[0] / left[1] < 5


def exact_map(teacher: Teacher, batch: Batch) -> Tensor:
    """The exact map, by Heun's method in float64."""
    return heun(teacher, batch.x0, batch.cond, batch.layout, step_grid(200, 0.5), Step(0, Interpolant()))


def test_the_bias_of_one_gaussian_is_that_of_its_closed_form() -> None:
    """Of N(0, s^2) everything is a multiple of z: Euler's product, and the recursion, in plain numbers."""
    s, interval, steps = 0.5, 0.01, 100
    mixture = Mixture(torch.zeros(1, 3, dtype=torch.float64), s, torch.zeros(1, dtype=torch.int64))

    def coefficient(t: float) -> float:
        return (t - (1 - t) * s**2) / ((1 - t) ** 2 * s**2 + t**2)

    noise = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    euler, vm = limits(lambda x, t_B: mixture.velocity(Interpolant(), x, t_B[:, None]), noise, interval)
    shrunk, shares = 1.0, []
    for k in range(steps):
        shares.append(shrunk * coefficient(1 - k * interval))
        shrunk -= interval * shares[-1]
    average = shrunk * coefficient(0.0)
    for k in reversed(range(steps)):
        average = (interval * shares[k] + (1 - k * interval) * average) / (1 - k * interval + interval)
    assert torch.allclose(euler, shrunk * noise)
    assert torch.allclose(vm, (1 - average) * noise)
    assert 1 - average - s == pytest.approx(shrunk - s + interval, rel=0.05)


@pytest.mark.parametrize("method", ["vm", "cm", "jvp"])
def test_the_engines_gradient_vanishes_at_a_solved_student(method: Method) -> None:
    """On samples that it was not solved on, so up to their noise; for another method's student it does not."""
    mixture = Mixture(normal(12, 2, seed=3), 0.6, torch.zeros(12, dtype=torch.int64))
    flow, draws = MixtureFlow(mixture), torch.Generator().manual_seed(9)
    x0 = mixture.sample(torch.zeros(8000, dtype=torch.int64), draws)
    uniform = TimeSampler(kind="uniform")
    if method == "cm":
        objective: Objective[Any] = Consistency(ConsistencyConfig(interval=INTERVAL, loss="l2", t=uniform))
    else:
        kind = "continuous" if method == "jvp" else "discrete"
        objective = VelocityMatching(VMConfig(kind=kind, interval=INTERVAL, d_norm="none", t=uniform))

    def velocity(x: Tensor, t_B: Tensor) -> Tensor:
        return mixture.velocity(LINE, x, t_B[:, None])

    def solve(which: Method) -> LinearStudent:
        return LinearStudent(2, 0).solve(
            which, INTERVAL, mixture, lambda x, t: mixture.velocity(LINE, x, t[:, None]), 0
        )

    def gradient(student: LinearStudent) -> float:
        nets = Nets({"student": student, "teacher": Teacher(flow)}, {})
        loss = sum(means(objective.loss(Batch(x0, Dense(8000)), nets, Step(0, LINE))).values())
        (found,) = torch.autograd.grad(cast(Tensor, loss), student.weight)
        return float(found.norm())

    other: Method = "vm" if method == "cm" else "cm"
    assert gradient(solve(method)) < 0.2 * gradient(solve(other))


def test_the_velocity_of_one_sample_points_at_it() -> None:
    x, t_B = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.full((5,), 0.5)
    sample = torch.tensor([[1.0, 2.0, 3.0]])
    found = velocity_of(sample, torch.zeros(1, dtype=torch.int64), 1e-3, x, t_B, Condition())
    assert torch.allclose(found, (x - 0.5 * sample) / 0.5 - sample, atol=1e-4)
