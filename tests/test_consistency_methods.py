"""ECT, sCM, LCM and TCM: the papers' formulas, on dense and ragged samples, identities, and closed forms."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from closed_forms import (
    GAUSSIAN,
    Given,
    draws,
    exact_nets,
    gaussian_batch,
    gradients,
    largest,
    random_student,
    total,
)
from fewstep_consistency.cm import Consistency
from fewstep_consistency.config import ConsistencyConfig, ECTConfig, LCMConfig, SCMConfig, TCMConfig
from fewstep_consistency.ect import ECT
from fewstep_consistency.lcm import LatentConsistency
from fewstep_consistency.scm import ContinuousConsistency
from fewstep_consistency.tcm import TruncatedConsistency
from fewstep_toy.analytic import AnalyticFlow, GaussianMap
from pydantic import ValidationError
from torch import Tensor, nn

import fewstep
from fewstep.cli import main
from fewstep.core.backbone import Backbone, Teacher
from fewstep.core.batch import Batch, Condition
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense, Layout, Packed
from fewstep.core.objective import Nets, Step, means
from fewstep.core.times import TimeSampler
from fewstep.engine.networks import Networks
from fewstep.methods.residual import faded_in

LENGTHS = {"dense": [1] * 5, "ragged": [3, 1, 4, 1, 2]}


def points(kind: str) -> tuple[Batch, dict[str, Tensor]]:
    """Five samples of points, and their draws."""
    lengths = LENGTHS[kind]
    x0 = gaussian_batch(sum(lengths), seed=3).x0
    layout: Layout = Dense(5) if kind == "dense" else Packed.of_lengths(lengths)
    return Batch(x0, layout), draws(x0, 5, seed=4)


def samples(kind: str, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Each sample's own points of these tensors."""
    return list(zip(*(tensor.split(LENGTHS[kind]) for tensor in tensors), strict=True))


def velocity_at(network: nn.Module, x: Tensor, t: float | Tensor) -> Tensor:
    """The network's answer at points [P, 2], all at time t."""
    times = torch.as_tensor(t, dtype=torch.float64).expand(len(x))
    found: Tensor = network(x, times, Condition(), Dense(len(x)))
    return found


def jump(network: nn.Module, x: Tensor, t: float | Tensor) -> Tensor:
    """f(x, t) = x - t F(x, t)."""
    return x - t * velocity_at(network, x, t)


def agree(ours: dict[str, Tensor], theirs: Tensor, student: nn.Module, bound: float = 1e-9) -> None:
    """Loss and gradient are those of the written formula."""
    assert total(ours).item() == pytest.approx(theirs.item(), rel=bound)
    found = gradients(ours, student), gradients({"written": theirs}, student)
    assert largest(*found) < bound
    assert max(float(g.abs().max()) for g in found[0]) > 1e-3


@pytest.mark.parametrize("kind", ["dense", "ragged"])
@pytest.mark.parametrize("shape", ["level", "constant"])
def test_ect_is_the_papers_formula(kind: str, shape: str) -> None:
    """Stage 2 of 4 without a teacher: one noise at both times, pseudo-Huber distance over t - r."""
    batch, given = points(kind)
    student = random_student(GAUSSIAN)
    config = ECTConfig(
        shape=shape, interval=0.4, q=3.0, stages=4, velocity="data", weight="interval", loss="pseudo-huber", huber=0.2
    )
    step = Given(given, index=60, total=100)
    ours = ECT(config).loss(batch, exact_nets(student), step)

    shrunk, terms = 0.4 / 3**2, []
    first = 0.002 if shape == "level" else shrunk
    for (x0, noise), u in zip(samples(kind, batch.x0, given["noise"]), given["t"].tolist(), strict=True):
        t = first + (1 - first) * u
        r = t - shrunk
        if shape == "level":
            r = max(0.0, t * (1 - shrunk * (1 + 8 / (1 + math.exp(t / (1 - t))))))
        at_t, at_r = ((1 - time) * x0 + time * noise for time in (t, r))
        difference = jump(student, at_t, t) - jump(student, at_r, r).detach()
        terms.append(((difference.square().mean() + 0.2**2).sqrt() - 0.2) / (t - r))
    agree(ours, torch.stack(terms).mean(), student)


@pytest.mark.parametrize("kind", ["dense", "ragged"])
@pytest.mark.parametrize("norm", ["sample", "element"])
def test_scm_is_the_papers_formula(kind: str, norm: str) -> None:
    """The tangent -df/dt, its derivative faded in by 0.3, divided by its size and the constant."""
    batch, given = points(kind)
    student, teacher = random_student(GAUSSIAN), AnalyticFlow(GAUSSIAN).double()
    config = SCMConfig(norm=norm, norm_constant=0.4, warmup=0.5)
    ours = ContinuousConsistency(config).loss(batch, exact_nets(student), Given(given, index=15, total=100))

    terms, h = [], 1e-5
    for (x0, noise), t in zip(samples(kind, batch.x0, given["noise"]), given["t"].tolist(), strict=True):
        x_t = (1 - t) * x0 + t * noise
        v, average = velocity_at(teacher, x_t, t), velocity_at(student, x_t, t)
        slope = (velocity_at(student, x_t + h * v, t + h) - velocity_at(student, x_t - h * v, t - h)) / (2 * h)
        g = (average - v + 0.3 * t * slope).detach()
        size = g.square().sum().sqrt() if norm == "sample" else g.square().mean().sqrt()
        terms.append((average - average.detach() + g / (size + 0.4)).square().mean())
    agree(ours, torch.stack(terms).mean(), student, 1e-7)


@pytest.mark.parametrize("kind", ["dense", "ragged"])
def test_lcm_is_the_papers_formula(kind: str) -> None:
    """A DDIM step of the guided teacher over k = 3 of N = 10 times, and an EMA as target."""
    batch, given = points(kind)
    given["t"] = torch.tensor([0, 1, 2, 4, 7], dtype=torch.float64) / 7  # what the grid of 8 points gives
    student, average, teacher = (random_student(GAUSSIAN, seed) for seed in (0, 5, 6))
    nets = Nets({"student": student, "teacher": Teacher(teacher)}, {("student", 0.95): average})
    config = LCMConfig(interval=0.3, t=TimeSampler(kind="grid", points=8), loss="l2", weight="none")
    assert LatentConsistency(config).networks()["student"].ema == (0.95,)
    ours = LatentConsistency(config).loss(batch, nets, Given(given))

    terms = []
    for (x0, noise), n in zip(samples(kind, batch.x0, given["noise"]), (3, 4, 5, 7, 10), strict=True):
        t, s = n / 10, (n - 3) / 10
        x_t = (1 - t) * x0 + t * noise
        v = velocity_at(teacher, x_t, t)
        data_end, noise_end = x_t - t * v, x_t + (1 - t) * v
        difference = jump(student, x_t, t) - jump(average, (1 - s) * data_end + s * noise_end, s).detach()
        terms.append(difference.square().mean())
    agree(ours, torch.stack(terms).mean(), student)


def two_networks(student: nn.Module, first: nn.Module) -> Nets:
    return Nets({"student": student, "first": first, "teacher": Teacher(AnalyticFlow(GAUSSIAN).double())}, {})


@pytest.mark.parametrize("kind", ["dense", "ragged"])
def test_tcm_is_the_papers_formula(kind: str) -> None:
    """t' = 0.6 and D = 0.2: a share of 0.4 at t', of weight 0.3; before t' the target is the first network's."""
    batch, given = points(kind)
    given["boundary"] = torch.tensor([0.9, 0.1, 0.5, 0.39, 0.41], dtype=torch.float64)
    student, first, teacher = random_student(GAUSSIAN), random_student(GAUSSIAN, 5), AnalyticFlow(GAUSSIAN).double()
    config = TCMConfig(
        boundary=0.6,
        boundary_share=0.4,
        boundary_weight=0.3,
        interval=0.2,
        loss="l2",
        weight="none",
    )
    ours = TruncatedConsistency(config).loss(batch, two_networks(student, first), Given(given))
    assert list(ours) == ["tcm", "first"]

    late, early, looks_below = [], [], 0
    for i, (x0, noise) in enumerate(samples(kind, batch.x0, given["noise"])):
        u = float(given["t"][i])
        t, factor = (0.6, 0.3 / 0.4) if i in (1, 3) else (0.6 + 0.4 * u, 1 / 0.6)
        x_t = (1 - t) * x0 + t * noise
        before = jump(student if t - 0.2 >= 0.6 else first, x_t - 0.2 * velocity_at(teacher, x_t, t), t - 0.2)
        late.append(factor * (jump(student, x_t, t) - before.detach()).square().mean())
        looks_below += t - 0.2 < 0.6
        t = 0.2 + 0.4 * u
        x_t = (1 - t) * x0 + t * noise
        before = jump(first, x_t - 0.2 * velocity_at(teacher, x_t, t), t - 0.2)
        early.append((jump(first, x_t, t) - before.detach()).square().mean())
    assert 2 < looks_below < 5
    agree({"tcm": ours["tcm"]}, torch.stack(late).mean(), student)
    agree({"first": ours["first"]}, torch.stack(early).mean(), first)
    assert largest(gradients({"tcm": ours["tcm"]}, first), [torch.zeros_like(p) for p in first.parameters()]) == 0


def test_lcm_draws_the_times_of_its_grid() -> None:
    batch = gaussian_batch(4000)
    t_B = LatentConsistency(LCMConfig()).look(Step(0, Interpolant())).times(batch, Step(0, Interpolant()))
    assert sorted(set((t_B * 50).round(decimals=4).tolist())) == list(range(1, 51))


def test_scm_bakes_guidance_in() -> None:
    """At the start of the warm-up the tangent is F - vT alone, of the guided velocity."""
    batch = Batch(gaussian_batch(4).x0, Dense(4), Condition(torch.eye(8, dtype=torch.float64)[:4]))
    config = GAUSSIAN.model_copy(update={"target": "ring", "conditional": True})
    student, given = random_student(config), draws(batch.x0, 4)
    objective = ContinuousConsistency(SCMConfig(norm="none", guidance=1.5, warmup=10))
    nets = exact_nets(student, config)
    loss = means(objective.loss(batch, nets, Given(given)))["scm"]
    x_t = Interpolant().interpolate(batch.x0, given["noise"], given["t"], batch.layout)
    c, u = (nets.teacher.backbone(x_t, given["t"], cond, batch.layout) for cond in (batch.cond, batch.cond.negative()))
    error = student(x_t, given["t"], batch.cond, batch.layout) - (2.5 * c - 1.5 * u)
    assert loss.item() == pytest.approx(error.square().mean().item())


# Identities among the methods.


@pytest.mark.parametrize("weight", ["none", "interval", "velocity"])
def test_ect_with_a_constant_interval_is_cm(weight: str) -> None:
    batch, given = points("ragged")
    student, shared = random_student(GAUSSIAN), {"interval": 0.07, "weight": weight}
    ect = ECT(ECTConfig(shape="constant", stages=1, **shared))
    cm = Consistency(ConsistencyConfig(**shared))
    for index in (0, 99):
        step, nets = Given(given, index=index, total=100), exact_nets(student)
        one, other = ect.loss(batch, nets, step)["ect"], cm.loss(batch, nets, step)["cm"]
        assert largest(one, other) < 1e-12
        assert largest(gradients({"a": one}, student), gradients({"a": other}, student)) < 1e-12


def test_ect_at_each_time_is_cm_with_that_interval() -> None:
    """Shape "level", sample by sample."""
    batch, given = points("dense")
    student, ect = random_student(GAUSSIAN), ECT(ECTConfig(interval=0.1, stages=1))
    nets = exact_nets(student)
    at = ect.point(batch, nets, Given(given))
    ours = ect.loss(batch, nets, Given(given))["ect"]
    for i, (t, interval) in enumerate(zip(at.t_B.tolist(), at.interval_B.tolist(), strict=True)):
        row = torch.tensor([i])
        drawn = {
            "noise": given["noise"][row],
            "t": torch.tensor([(t - interval) / (1 - interval)], dtype=torch.float64),
        }
        cm = Consistency(ConsistencyConfig(interval=interval)).loss(batch.select(row), nets, Given(drawn))["cm"]
        assert largest(ours[row], cm) < 1e-11
    assert len({round(x, 3) for x in at.interval_B.tolist()}) == 5


@pytest.mark.parametrize("kind", ["dense", "ragged"])
def test_scm_without_its_normalisation_is_continuous_cm(kind: str) -> None:
    batch, given = points(kind)
    student, step = random_student(GAUSSIAN), Given(given)
    nets = exact_nets(student)
    scm = ContinuousConsistency(SCMConfig(norm="none", warmup=0)).loss(batch, nets, step)
    cm = Consistency(ConsistencyConfig(kind="continuous", loss="l2", weight="velocity")).loss(batch, nets, step)
    assert largest(gradients(scm, student), gradients(cm, student)) < 1e-12
    assert total(scm).item() == pytest.approx(total(cm).item())


def test_tcm_above_its_boundary_is_cm() -> None:
    """Where no jump reaches below t' and no sample lies at it, up to the weight of the others."""
    batch, given = points("ragged")
    given["boundary"] = torch.ones(5, dtype=torch.float64)
    student, boundary, interval = random_student(GAUSSIAN), 0.06, 0.04
    objective = TruncatedConsistency(TCMConfig(boundary=boundary, interval=interval))
    tcm = objective.loss(batch, two_networks(student, random_student(GAUSSIAN, 5)), Given(given))["tcm"]
    t_B = boundary + (1 - boundary) * given["t"]
    assert float(t_B.min()) - interval > boundary
    drawn = Given(given | {"t": (t_B - interval) / (1 - interval)})
    cm = Consistency(ConsistencyConfig(interval=interval)).loss(batch, exact_nets(student), drawn)["cm"]
    assert largest(tcm, cm / 0.75) < 1e-12


def test_ect_approaches_scm() -> None:
    """As the interval shrinks, in first order; the squared distance weighted by 1 / (t D)."""
    batch, given = points("ragged")
    student = random_student(GAUSSIAN)
    nets = exact_nets(student)
    limit = gradients(ContinuousConsistency(SCMConfig(norm="none", warmup=0)).loss(batch, nets, Given(given)), student)
    errors = []
    for interval in (4e-3, 2e-3, 1e-3):
        first = ECT(ECTConfig(interval=interval, stages=1, loss="l2", weight="velocity"))
        drawn = given | {"t": (given["t"] - 0.002) / 0.998}  # the same times
        found = gradients(first.loss(batch, nets, Given(drawn)), student)
        errors.append(largest([g / interval for g in found], [g / interval for g in limit]) * interval)
    assert 1.7 < errors[0] / errors[1] < 2.3
    assert 1.7 < errors[1] / errors[2] < 2.3


# Schedules.


def test_the_interval_shrinks_in_stages() -> None:
    objective = ECT(ECTConfig(shape="constant", interval=0.4, q=2.0, stages=4))
    steps = [Step(index, Interpolant(), total=100) for index in (0, 24, 25, 74, 75, 99)]
    found = [objective.look(step).knobs.interval for step in steps]
    assert found == [0.4, 0.4, 0.2, 0.1, 0.05, 0.05]


def test_intervals_never_leave_the_data_behind() -> None:
    """t - D is at least sigma_min, and D above 0, at the ends too and in single precision."""
    for sigma_min in (0.0, 1e-5):
        knobs = ECT(ECTConfig()).look(Step(0, Interpolant(sigma_min))).knobs
        t_B = knobs.times(torch.tensor([0.0, 1e-8, 0.3, 0.9, 1.0]), sigma_min)
        interval_B = knobs.interval_at(t_B)
        assert bool((interval_B > 0).all())
        assert bool((t_B.double() - interval_B >= sigma_min).all())
        assert interval_B[-1].item() == pytest.approx(0.5)


def test_the_derivative_is_faded_in() -> None:
    at = [Step(index, Interpolant(), total=200) for index in (0, 25, 50, 199)]
    assert [faded_in(step, 0.25) for step in at] == [0.0, 0.5, 1.0, 1.0]
    assert [faded_in(step, 100) for step in at] == [0.0, 0.25, 0.5, 1.0]
    assert [faded_in(step, 0) for step in at] == [1.0] * 4


def test_a_truncated_student_is_not_asked_below_its_boundary() -> None:
    assert TruncatedConsistency(TCMConfig()).contract().steps == (1, 2)
    assert TruncatedConsistency(TCMConfig(boundary=0.6)).contract().steps == (1,)
    assert TruncatedConsistency(TCMConfig(boundary=0.6, rescale_t=3.0)).contract().steps == (1, 2)
    with pytest.raises(ValidationError, match=r"interval must be below boundary, got 0.3 and 0.2"):
        TCMConfig(interval=0.3, boundary=0.2)


def test_tcm_starts_both_networks_from_a_given_student() -> None:
    teacher, given = Teacher(random_student(GAUSSIAN).float()), random_student(GAUSSIAN, 5).float()
    nets = Networks(TruncatedConsistency(TCMConfig()).networks(), teacher, torch.device("cpu"))
    nets.start_from(given)
    for network in nets.trained.values():
        assert largest(list(network.parameters()), list(given.parameters())) == 0
    assert list(nets.trained) == ["student", "first"]


# Closed forms, on a Gaussian.


def test_the_exact_map_has_no_scm_tangent() -> None:
    batch = gaussian_batch(64)
    loss = ContinuousConsistency(SCMConfig(norm="none", warmup=0)).loss(
        batch, exact_nets(GaussianMap(GAUSSIAN).double()), Given(draws(batch.x0, 64))
    )
    assert float(total(loss).detach()) < 1e-24


def test_scm_starts_at_the_teachers_velocity() -> None:
    """At the first step of the warm-up the teacher itself is the minimiser, and after it no longer is."""
    batch, flow = gaussian_batch(64), AnalyticFlow(GAUSSIAN).double()
    objective, found = ContinuousConsistency(SCMConfig(norm="none", warmup=0.5)), []
    for index in (0, 50):
        step = Given(draws(batch.x0, 64), index=index, total=100)
        found.append(float(total(objective.loss(batch, exact_nets(flow), step))))
    assert found[0] < 1e-24
    assert found[1] > 0.1


def test_ect_starts_at_the_teachers_prediction_of_the_data() -> None:
    """In the first stage D = t where n(t) is 2 or more, below t = 0.66: the answer is the teacher's Euler step."""
    batch, flow = gaussian_batch(64), AnalyticFlow(GAUSSIAN).double()
    given = draws(batch.x0, 64)
    given["t"] = given["t"] * 0.6
    at_start, later = (
        largest(*ECT(ECTConfig()).jumps(batch, exact_nets(flow), Given(given, index=index, total=100))[:2])
        for index in (0, 50)
    )
    assert at_start < 1e-13
    assert later > 1e-3


def test_the_exact_map_is_a_fixed_point_of_ect_to_second_order() -> None:
    batch, exact = gaussian_batch(64), GaussianMap(GAUSSIAN).double()
    given = Given(draws(batch.x0, 64))
    errors = [
        largest(*ECT(ECTConfig(interval=d, stages=1)).jumps(batch, exact_nets(exact), given)[:2]) for d in (0.02, 0.01)
    ]
    assert 3.0 < errors[0] / errors[1] < 5.0


def test_the_exact_map_is_the_answer_of_tcm_whatever_the_student_is_below() -> None:
    """To second order. The first network alone answers before t': a student that is wrong there loses nothing."""

    class WrongBelow(GaussianMap):
        def forward(self, x: Tensor, t_B: Tensor, *args: Any, **more: Any) -> Tensor:
            found: Tensor = super().forward(x, t_B, *args, **more)
            return torch.where(t_B[:, None] < 0.5, found + 1.0, found)

    batch, found = gaussian_batch(64), []
    given = draws(batch.x0, 64) | {"boundary": torch.linspace(0, 1, 64, dtype=torch.float64)}
    for interval in (0.02, 0.01):
        nets = two_networks(WrongBelow(GAUSSIAN).double(), GaussianMap(GAUSSIAN).double())
        config = TCMConfig(interval=interval, loss="l2", weight="none")
        found.append(float(TruncatedConsistency(config).loss(batch, nets, Given(given))["tcm"].detach().max()) ** 0.5)
    assert 3.0 < found[0] / found[1] < 5.0


class EulerMap(Backbone):
    """The average velocity of the teacher's Euler steps of length D from t, a multiple of D, down to 0."""

    def __init__(self, interval: float) -> None:
        super().__init__()
        self.interval, self.flow = interval, AnalyticFlow(GAUSSIAN).double()

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        end, left_B = x, (t_B / self.interval).round()
        for _ in range(int(left_B.max())):
            moving = layout.expand((left_B > 0.5).double(), x)
            end = end - moving * self.interval * self.flow(end, (left_B * self.interval).clamp(min=0), cond, layout)
            left_B = left_B - 1
        return (x - end) / layout.expand(t_B.clamp(min=self.interval), x)


def test_lcm_learns_the_euler_steps_of_its_grid_and_no_more() -> None:
    """Their composition is the exact fixed point, so the student keeps the bias of N / k Euler steps."""
    batch, steps = gaussian_batch(64), 8
    t_B = TimeSampler(kind="grid", points=8).squash(torch.rand(64, generator=torch.Generator().manual_seed(0)).double())
    given, found = Given(draws(batch.x0, 64) | {"t": t_B}), {}
    objective = LatentConsistency(LCMConfig(interval=1 / steps, t=TimeSampler(kind="grid", points=8)))
    for name, student in (("euler", EulerMap(1 / steps)), ("exact", GaussianMap(GAUSSIAN).double())):
        teacher = Teacher(AnalyticFlow(GAUSSIAN).double())
        nets = Nets({"student": student, "teacher": teacher}, {("student", 0.95): student})
        found[name] = largest(*objective.jumps(batch, nets, given)[:2])
    assert found["euler"] < 1e-13
    assert found["exact"] > 1e-2


@pytest.mark.parametrize("method", ["ect", "scm", "lcm", "tcm"])
def test_a_run_from_the_command_line(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ("train.steps=3", "train.batch_size=4", "backbone.pretrain=2", "backbone.width=8", "data.layout=packed")
    assert main(["distill", "--method", method, "--backbone", "toy", "--out", str(tmp_path / "a"), *small]) == 0
    student = fewstep.load(tmp_path / "a")
    assert student.contract.sampler == "consistency"
    assert bool(student.sample(student.prompts(4), steps=2, seed=0).isfinite().all())
    assert "warning" not in capsys.readouterr().err
