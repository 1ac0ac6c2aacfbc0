"""Where the shared residual and a finite difference look: at exact times, in the right phase, with one random state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from closed_forms import RING, Given, exact_nets, random_student
from torch import Tensor

from fewstep.core.batch import Batch, Condition
from fewstep.core.derivatives import finite_difference
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense
from fewstep.core.objective import Step
from fewstep.core.times import TimeSampler
from fewstep.methods.point import Look, PointConfig
from fewstep.methods.residual import Derivative, faded_in

TIMES = torch.tensor([0.3, 0.9, 0.7000001])  # float32, as the engine draws them


def test_the_earlier_time_of_a_residual_keeps_its_digits() -> None:
    """t - D in float32 is off by 3e-8, which a network that looks at 1000 t and the division by D = 1e-4 magnify."""
    seen: list[Tensor] = []

    def student(x: Tensor, t_B: Tensor) -> Tensor:
        seen.append(t_B)
        return torch.sin(1000 * t_B.double())[:, None].to(x.dtype).expand_as(x)

    x, layout, step = torch.zeros(3, 2), Dense(3), Step(0, Interpolant())
    found = Derivative("discrete", 1e-4).residual(student, x, TIMES, torch.zeros(3, 2), layout, step)
    assert torch.equal(seen[1], TIMES.double() - 1e-4)
    exact = (torch.sin(1000 * TIMES.double()) - torch.sin(1000 * (TIMES.double() - 1e-4))) / 1e-4
    assert (found.derivative[:, 0] - exact).abs().max() < 2e-3  # of values up to 1000; float32 rounding of two sines


@pytest.mark.parametrize("interval", [0.1, lambda t_B: 0.9 * t_B])
def test_no_difference_crosses_an_edge(interval: Any) -> None:
    knobs, u_B = Derivative("discrete", interval, edges=(0.6, 0.9)), torch.linspace(0, 1, 4001)
    t_B = knobs.times(u_B, 1e-5)
    seen: list[Tensor] = []

    def student(x: Tensor, t_B: Tensor) -> Tensor:
        seen.append(t_B.double())
        return x

    x = torch.zeros(len(t_B), 1)
    knobs.residual(student, x, t_B, x, Dense(len(t_B)), Step(0, Interpolant()))
    late, early = seen
    for edge in (0.6, 0.9):
        assert not bool(((late > edge) & (early < edge - 1e-12)).any())
    length_B = late - early
    plain_B = Derivative("discrete", interval).interval_at(t_B)
    torch.testing.assert_close(length_B[late <= 0.6], plain_B[late <= 0.6])
    if not callable(interval):
        assert length_B.min() >= 0.05 - 1e-7
        assert t_B.max() <= 1


def test_a_time_at_an_edge_keeps_its_interval() -> None:
    """The edge itself belongs to what is below it: there is nothing to cut off, and D is not 0."""
    knobs = Derivative("discrete", 0.1, edges=(0.6,))
    assert knobs.interval_at(torch.tensor([0.6, 0.65], dtype=torch.float64)).tolist() == pytest.approx([0.1, 0.05])


def test_a_warm_up_of_1_is_one_iteration() -> None:
    found = [faded_in(Step(index, Interpolant(), total=10), warmup) for warmup in (1, 0.5) for index in (0, 1, 5)]
    assert found == pytest.approx([0, 1, 1, 0, 0.2, 1])


def test_a_central_difference_stays_on_one_side_of_an_edge() -> None:
    def student(x: Tensor, t_B: Tensor) -> Tensor:
        return x + torch.where(t_B < 0.6, t_B, 7 * t_B - 3.6)[:, None]

    t_B, x = torch.tensor([0.595, 0.605], dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
    step = Step(0, Interpolant(), edges=(0.6,))
    slope = Derivative("central", 0.01).residual(student, x, t_B, x, Dense(2), step).derivative
    assert slope[:, 0].tolist() == pytest.approx([1.0, 7.0])


def test_times_on_a_grid_of_intervals_are_those_of_a_sampler_with_as_many_steps() -> None:
    u_B = TimeSampler(kind="grid", points=4).draw(4000, torch.Generator().manual_seed(0))
    times, counts = Derivative("discrete", 0.25).times(u_B, 0.0).unique(return_counts=True)
    assert times.tolist() == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert counts.min() > 900  # of 1000 expected each, standard deviation 27


def test_the_times_of_a_finite_difference_keep_their_digits() -> None:
    seen: list[Tensor] = []

    def f(x: Tensor, t_B: Tensor) -> Tensor:
        seen.append(t_B)
        return x * t_B[:, None].to(x.dtype)

    finite_difference(f, (torch.ones(3, 2), TIMES), (torch.ones(3, 2), torch.ones(3)), 1e-3)
    assert torch.equal(seen[0], TIMES.double() + 1e-3)
    assert torch.equal(seen[1], TIMES.double() - 1e-3)


def test_all_evaluations_of_a_finite_difference_see_the_same_random_state() -> None:
    """As dropout does, which would otherwise be divided by the step."""

    def f(x: Tensor, t_B: Tensor) -> Tensor:
        return 3 * x + torch.rand(x.shape, dtype=x.dtype)

    torch.manual_seed(0)
    x, t_B = torch.zeros(4, 2, dtype=torch.float64), torch.full((4,), 0.5, dtype=torch.float64)
    value, slope = finite_difference(f, (x, t_B), (torch.ones_like(x), torch.ones_like(t_B)), 1e-3)
    torch.testing.assert_close(slope, torch.full_like(x, 3.0), rtol=0, atol=1e-9)
    torch.manual_seed(0)
    assert torch.equal(value, f(x, t_B))  # and the value sees what it would see alone


def test_a_finite_difference_touches_the_random_state_of_its_own_device_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine of several GPUs torch would save the state of all, and warn about it."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: pytest.fail(f"reads the state of GPU {device}"))
    finite_difference(torch.sin, (torch.ones(3),), (torch.ones(3),), 1e-3)


@pytest.mark.parametrize(("kind", "end"), [("discrete", 0.0), ("continuous", 0.5)])
def test_the_phase_is_that_of_the_earliest_time_looked_at(kind: str, end: float) -> None:
    """A finite difference from just above a boundary reaches below it: the whole step belongs to the lower phase."""
    look = Look(PointConfig(velocity="data"), Derivative(kind, 0.1), None, phases=2)
    student, layout = random_student(RING), Dense(2)
    batch = Batch(torch.zeros(2, 2, dtype=torch.float64), layout, Condition(torch.eye(8, dtype=torch.float64)[:2]))
    low = 0.1 if kind == "discrete" else 0.0
    drawn = (torch.tensor([0.55, 0.95], dtype=torch.float64) - low) / (1 - low)  # what becomes these times
    at = look.at(batch, exact_nets(student, RING), Given({"t": drawn, "noise": torch.ones_like(batch.x0)}))
    assert at.t_B.tolist() == pytest.approx([0.55, 0.95])
    assert at.end_B.tolist() == [end, 0.5]
