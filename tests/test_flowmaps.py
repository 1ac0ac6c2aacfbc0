"""Flow-map objectives against formulas written from their papers, sample by sample, and against an exact flow map."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from closed_forms import (
    GAUSSIAN,
    RING,
    Given,
    exact_nets,
    gaussian_batch,
    gradients,
    largest,
    random_student,
    total,
)
from fewstep_flowmaps.alphaflow import AlphaFlow
from fewstep_flowmaps.ayf import AlignYourFlow
from fewstep_flowmaps.config import (
    AdaptiveConfig,
    AlphaFlowConfig,
    AYFConfig,
    IntervalConfig,
    ShortcutConfig,
    SplitConfig,
)
from fewstep_flowmaps.interval import FlowMap, drawn, through
from fewstep_flowmaps.meanflow import ImprovedMeanFlow, MeanFlow
from fewstep_flowmaps.splitting import Shortcut, SplitMeanFlow
from fewstep_mdt.config import VMConfig
from fewstep_mdt.vm import VelocityMatching
from fewstep_toy.analytic import AnalyticFlow, GaussianMap
from fewstep_toy.network import ToyFlow
from pydantic import ValidationError
from torch import Tensor

import fewstep
from fewstep.cli import main
from fewstep.core.backbone import Backbone, Teacher
from fewstep.core.batch import Batch, Condition
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense, Layout, Packed
from fewstep.core.objective import Nets, Step
from fewstep.core.times import TimeSampler
from fewstep.methods.residual import Residual
from fewstep.testing import check_objective

STRENGTH, LENGTHS = 1.5, [1, 4, 2, 1, 3]
COMMON: dict[str, Any] = {"guidance": STRENGTH, "reduction": "sample", "apart": 0.8}
F = Callable[[Tensor, Tensor, Tensor], Tensor]
METHODS: list[tuple[type[FlowMap[Any]], Any]] = [
    (MeanFlow, AdaptiveConfig),
    (ImprovedMeanFlow, AdaptiveConfig),
    (AlphaFlow, AlphaFlowConfig),
    (SplitMeanFlow, SplitConfig),
    (Shortcut, ShortcutConfig),
    (AlignYourFlow, AYFConfig),
]


@dataclass
class Sample:
    """One sample of a batch, as a batch of one with its points [1, P, 2]; times are [1]."""

    x: Tensor
    t: Tensor
    s: Tensor
    u: F
    v: Callable[[Tensor, Tensor], Tensor]
    share: Tensor

    def along(self, f: F, direction: Tensor) -> Tensor:
        """d/dt f(x, t, s) with dx/dt = direction, by reverse mode twice; detached."""
        inputs, tangents = (self.x, self.t), (direction, torch.ones_like(self.t))
        found = torch.autograd.functional.jvp(lambda x, t: f(x, t, self.s), inputs, tangents)
        return cast(Tensor, found[1].detach())


Formula = Callable[[Sample], Tensor]


def make_batch(packed: bool) -> Batch:
    g, count = torch.Generator().manual_seed(1), len(LENGTHS)
    tokens = torch.nn.functional.one_hot(torch.randint(8, (count,), generator=g), 8).double()
    layout: Layout = Packed.of_lengths(LENGTHS) if packed else Dense(count)
    rows = torch.randn(sum(LENGTHS) if packed else count, 2, generator=g, dtype=torch.float64)
    return Batch(rows, layout, Condition(tokens))


def make_draws(batch: Batch, **more: list[float]) -> dict[str, Tensor]:
    """Two times away from the ends; the fourth sample has s = t."""
    given = {
        "t": [0.3, 0.9, 0.7, 0.8, 0.55],
        "s": [0.6, 0.2, 0.1, 0.4, 0.95],
        "apart": [0.1, 0.5, 0.7, 0.9, 0.3],
        "split": [0.3, 0.7, 0.5, 0.2, 0.9],
        "to_data": [0.9] * 5,
        "from_noise": [0.9] * 5,
    } | more
    found = {name: torch.tensor(values, dtype=torch.float64) for name, values in given.items()}
    noise = torch.randn(batch.x0.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return found | {"noise": noise}


def samples(
    batch: Batch, draws: dict[str, Tensor], student: Backbone, times: list[tuple[float, float]]
) -> list[Sample]:
    """The batch taken apart without its layout, each at (t, s)."""
    assert batch.cond.tokens is not None
    lengths = LENGTHS if isinstance(batch.layout, Packed) else [1] * len(LENGTHS)
    flow, found, start = AnalyticFlow(RING).double(), [], 0
    for i, length in enumerate(lengths):
        rows = slice(start, start + length)
        start += length
        x0, noise = batch.x0[rows][None], draws["noise"][rows][None]
        t, s = (torch.tensor([value], dtype=torch.float64) for value in times[i])
        cond, empty = Condition(batch.cond.tokens[i][None]), Condition(torch.zeros(1, 8, dtype=torch.float64))

        def u(x: Tensor, t: Tensor, s: Tensor, cond: Condition = cond) -> Tensor:
            return student(x, t, cond, Dense(1), s_B=s)

        def v(x: Tensor, t: Tensor, cond: Condition = cond, empty: Condition = empty) -> Tensor:
            with torch.no_grad():
                c, none = flow(x, t, cond, Dense(1)), flow(x, t, empty, Dense(1))
            return cast(Tensor, (1 + STRENGTH) * c - STRENGTH * none)

        found.append(Sample((1 - t) * x0 + t * noise, t, s, u, v, draws["split"][i]))
    return found


TIMES = [(0.6, 0.3), (0.9, 0.2), (0.7, 0.1), (0.8, 0.8), (0.95, 0.55)]


def meanflow(power: float) -> Formula:
    def loss(at: Sample) -> Tensor:
        v, u = at.v(at.x, at.t), at.u(at.x, at.t, at.s)
        target = v - (at.t - at.s) * at.along(at.u, v)
        error = (u - target).square().mean()
        return error / (error.detach() + 1e-3) ** power

    return loss


def anyflow(at: Sample) -> Tensor:
    v, h = at.v(at.x, at.t), 0.005
    later, earlier = at.u(at.x + h * v, at.t + h, at.s), at.u(at.x - h * v, at.t - h, at.s)
    target = v - (at.t - at.s) * (later - earlier).detach() / (2 * h)
    weight = at.t * (1 - at.t).sqrt() / (4 / 15)  # the mean of t sqrt(1 - t) over [0, 1]
    return weight[0] * (at.u(at.x, at.t, at.s) - target).square().mean()


def improved(at: Sample) -> Tensor:
    v, own = at.v(at.x, at.t), at.u(at.x, at.t, at.t).detach()
    compound = at.u(at.x, at.t, at.s) + (at.t - at.s) * at.along(at.u, own)
    error = (compound - v).square().mean()
    return error / (error.detach() + 1e-3)


def alphaflow(power: float) -> Formula:
    alpha = 1 / (1 + math.exp(-0.5))  # the sigmoid of steepness 1 at the first iteration

    def loss(at: Sample) -> Tensor:
        v, u = at.v(at.x, at.t), at.u(at.x, at.t, at.s)
        m = alpha * at.s + (1 - alpha) * at.t
        target = alpha * v + (1 - alpha) * at.u(at.x - (at.t - m) * v, m, at.s)
        error = (u - target.detach()).square().mean()
        return error / alpha if power == 0 else alpha * error / (error.detach() + alpha**2 * 1e-3)

    return loss


def split(at: Sample) -> Tensor:
    lam = at.share
    m = (1 - lam) * at.t + lam * at.s
    second = at.u(at.x, at.t, m)
    first = at.u(at.x - (at.t - m) * second, m, at.s)
    target = at.v(at.x, at.t) if at.t == at.s else (1 - lam) * first + lam * second
    return (at.u(at.x, at.t, at.s) - target.detach()).square().mean()


def ayf(kind: str, norm: str) -> Formula:
    """A function with the paper's gradient, sign(t - s) / |t - s| df^T df/dt or its Lagrangian form, doubled and over
    the number of elements."""

    def loss(at: Sample) -> Tensor:
        span = at.t - at.s

        def f(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
            return x - (t - s) * at.u(x, t, s)

        if kind == "eulerian":
            g = -at.along(f, at.v(at.x, at.t))
        else:
            _, slope = torch.autograd.functional.jvp(lambda s: f(at.x, at.t, s), (at.s,), (torch.ones_like(at.s),))
            g = slope.detach() - at.v(f(at.x, at.t, at.s).detach(), at.s)
        if norm != "none":
            g = g / ((g.norm() if norm == "sample" else g.square().mean().sqrt()) + 0.1)
        jump = f(at.x, at.t, at.s) / span if span > 0 else -at.u(at.x, at.t, at.s)
        return -2 * (jump * g).mean()

    return loss


CASES: dict[str, tuple[FlowMap[Any], Formula]] = {
    "meanflow": (MeanFlow(AdaptiveConfig(**COMMON)), meanflow(1)),
    "meanflow-plain": (MeanFlow(AdaptiveConfig(power=0, **COMMON)), meanflow(0)),
    "anyflow": (MeanFlow(AdaptiveConfig(power=0, weight="anyflow", central=0.005, **COMMON)), anyflow),
    "imeanflow": (ImprovedMeanFlow(AdaptiveConfig(**COMMON)), improved),
    "alphaflow": (AlphaFlow(AlphaFlowConfig(steepness=1, **COMMON)), alphaflow(1)),
    "alphaflow-plain": (AlphaFlow(AlphaFlowConfig(steepness=1, power=0, **COMMON)), alphaflow(0)),
    "split": (SplitMeanFlow(SplitConfig(**COMMON)), split),
    "emd": (AlignYourFlow(AYFConfig(norm="none", **COMMON)), ayf("eulerian", "none")),
    "emd-sample": (AlignYourFlow(AYFConfig(norm="sample", **COMMON)), ayf("eulerian", "sample")),
    "emd-element": (AlignYourFlow(AYFConfig(norm="element", **COMMON)), ayf("eulerian", "element")),
    "lmd": (AlignYourFlow(AYFConfig(norm="none", kind="lagrangian", **COMMON)), ayf("lagrangian", "none")),
    "lmd-sample": (AlignYourFlow(AYFConfig(norm="sample", kind="lagrangian", **COMMON)), ayf("lagrangian", "sample")),
}


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "ragged"])
@pytest.mark.parametrize("name", list(CASES))
def test_loss_and_gradient_are_the_papers(name: str, packed: bool) -> None:
    objective, formula = CASES[name]
    compare(objective, formula, make_batch(packed), TIMES)


def compare(
    objective: FlowMap[Any], formula: Formula, batch: Batch, times: list[tuple[float, float]], **more: list[float]
) -> None:
    """Loss and gradient, the mean over samples; of Align Your Flow the gradient alone is written in the paper."""
    student, given = random_student(RING), make_draws(batch, **more)
    ours = objective.loss(batch, exact_nets(student, RING), Given(given))
    expected = {"paper": torch.stack([formula(one) for one in samples(batch, given, student, times)])}
    if not isinstance(objective, AlignYourFlow):
        assert total(ours).item() == pytest.approx(total(expected).item(), rel=1e-11)
    theirs = gradients(expected, student)
    assert largest(gradients(ours, student), theirs) < 1e-10
    assert max(float(g.abs().max()) for g in theirs) > 1e-3


def test_by_element_a_longer_sample_weighs_more() -> None:
    batch, student = make_batch(packed=True), random_student(RING)
    given, config = make_draws(batch), AdaptiveConfig(**{**COMMON, "reduction": "element"})
    ours = total(MeanFlow(config).loss(batch, exact_nets(student, RING), Given(given)))
    each = [meanflow(1)(one) for one in samples(batch, given, student, TIMES)]
    expected = sum(n * float(loss.detach()) for n, loss in zip(LENGTHS, each, strict=True)) / sum(LENGTHS)
    assert float(ours.detach()) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "ragged"])
def test_shortcuts_are_the_papers(packed: bool) -> None:
    """Steps of 1, 1/2, 1/4 and the shortest 2/units = 1/4 of 8 units; one sample learns the velocity."""
    draws = {
        "length": [0.1, 0.5, 0.9, 0.2, 0.7],
        "place": [0.3, 0.6, 0.8, 0.1, 0.1],
        "apart": [0.0, 0.0, 0.0, 0.9, 0.0],
    }
    times = [(1.0, 0.0), (1.0, 0.5), (1.0, 0.75), (0.8, 0.8), (0.25, 0.0)]

    def shortcut(at: Sample) -> Tensor:
        d = (at.t - at.s) / 2
        length = d if d > 1 / 8 else 0 * d  # the shortest half step is asked for the velocity
        first = at.u(at.x, at.t, at.t - length)
        second = at.u(at.x - d * first, at.t - d, at.t - d - length)
        target = at.v(at.x, at.t) if d == 0 else (first + second) / 2
        return (at.u(at.x, at.t, at.s) - target.detach()).square().mean()

    draws["length"][4] = 0.95
    compare(Shortcut(ShortcutConfig(units=8, **COMMON)), shortcut, make_batch(packed), times, **draws)


def test_the_average_of_the_weights_makes_a_shortcuts_target() -> None:
    batch, student, average = make_batch(False), random_student(RING), random_student(RING, seed=5)
    given = make_draws(batch, length=[0.1] * 5, place=[0.3] * 5, apart=[0.0] * 5)
    objective = Shortcut(ShortcutConfig(target="ema", target_ema=0.9, **COMMON))
    assert objective.networks()["student"].ema == (0.9,)
    modules = {"student": student, "teacher": Teacher(AnalyticFlow(RING).double())}
    ours = total(objective.loss(batch, Nets(modules, {("student", 0.9): average}), Given(given)))
    whole, half, none = (torch.full((5,), value, dtype=torch.float64) for value in (1.0, 0.5, 0.0))
    x, cond, layout = given["noise"], batch.cond, batch.layout
    first = average(x, whole, cond, layout, s_B=half)
    target = (first + average(x - 0.5 * first, half, cond, layout, s_B=none)) / 2
    expected = (student(x, whole, cond, layout, s_B=none) - target).square().mean()
    assert float(ours.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)


def test_the_times_that_shortcuts_are_trained_at() -> None:
    """Every length is drawn, and steps of a length lie side by side on the grid of a sampler of as many steps."""
    batch = gaussian_batch(4000)
    t_B, s_B = Shortcut(ShortcutConfig(units=8, apart=1.0)).ends(batch, Step(0, Interpolant()))
    assert {(float(s), float(t)) for s, t in zip(s_B, t_B, strict=True)} == {
        (k / n, (k + 1) / n) for n in (1, 2, 4) for k in range(n)
    }


@pytest.mark.parametrize("draw", ["ends", "length"])
def test_the_intervals_that_the_others_are_trained_on(draw: Any) -> None:
    layout, step = Dense(20000), Step(0, Interpolant())
    config = IntervalConfig(draw=draw, t=TimeSampler(mean=-0.8, std=1.0), to_data=0.0)
    t_B, s_B = drawn(config, layout, step)
    assert bool(((s_B >= 0) & (s_B <= t_B) & (t_B <= 1)).all())
    logits = (t_B - s_B).logit() if draw == "length" else torch.cat([t_B, s_B]).logit()
    assert float(logits.mean()) == pytest.approx(-0.8, abs=0.03)
    assert float(logits.std()) == pytest.approx(1.0, abs=0.03)
    ends = MeanFlow(AdaptiveConfig(apart=0.25)).ends(Batch(torch.zeros(20000, 2), layout), step)
    assert float((ends[0] > ends[1]).float().mean()) == pytest.approx(0.25, abs=0.01)


def test_the_shares_of_whole_intervals() -> None:
    batch = Batch(torch.zeros(20000, 2), Dense(20000))
    config = AdaptiveConfig(apart=0.5, to_data=0.5, from_noise=0.25)
    t_B, s_B = MeanFlow(config).ends(batch, Step(0, Interpolant()))
    assert bool((s_B <= t_B).all())
    for found, share in [
        (s_B == t_B, 0.5),
        (s_B == 0, 0.25),
        ((t_B == 1) & (s_B < 1), 0.125),
        ((t_B == 1) & (s_B == 0), 0.0625),
    ]:
        assert float(found.float().mean()) == pytest.approx(share, abs=0.01)


def test_data_serves_in_place_of_a_teacher() -> None:
    batch, student = make_batch(False), random_student(RING)
    config = {**COMMON, "guidance": None, "velocity": "data"}
    given = make_draws(batch)
    ours = MeanFlow(AdaptiveConfig(**config)).loss(batch, exact_nets(student, RING), Given(given))
    found = samples(batch, given, student, TIMES)
    for i, one in enumerate(found):
        one.v = lambda x, t, i=i: (given["noise"][i] - batch.x0[i])[None, None]  # type: ignore[misc]
    expected = {"paper": torch.stack([meanflow(1)(one) for one in found])}
    assert largest(gradients(ours, student), gradients(expected, student)) < 1e-10


# Identities of the family.


class ToData(Backbone):
    """A two-time student that is asked for its jump to the data, as a student of one time is."""

    def __init__(self, student: ToyFlow) -> None:
        super().__init__()
        self.student_ = student

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        assert s_B is None
        return cast(Tensor, self.student_(x, t_B, cond, layout, s_B=torch.zeros_like(t_B)))


@pytest.mark.parametrize(
    "objective",
    [MeanFlow(AdaptiveConfig(power=0, **COMMON)), AlignYourFlow(AYFConfig(norm="none", **COMMON))],
    ids=["meanflow", "emd"],
)
def test_at_s_0_it_is_continuous_velocity_matching(objective: FlowMap[Any]) -> None:
    batch, student = make_batch(packed=True), random_student(RING)
    given = make_draws(batch, s=[0.0] * 5, apart=[0.0] * 5)
    config = VMConfig(kind="continuous", d_norm="none", guidance_vm=STRENGTH, reduction="sample")
    matching = VelocityMatching(config).loss(batch, exact_nets(ToData(student), RING), Given(given))
    ours = objective.loss(batch, exact_nets(student, RING), Given(given))
    assert float(total(ours).detach()) == pytest.approx(float(total(matching).detach()), rel=1e-12)
    assert largest(gradients(ours, student), gradients(matching, student)) < 1e-12


def test_alphaflow_ends_in_flow_matching_and_in_meanflow(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, student = make_batch(False), random_student(RING)
    given, nets = Given(make_draws(batch)), exact_nets(student, RING)

    def gradient(alpha: float) -> list[Tensor]:
        objective = AlphaFlow(AlphaFlowConfig(**COMMON))
        monkeypatch.setattr(objective, "alpha", lambda step: alpha)
        return gradients(objective.loss(batch, nets, given), student)

    def regression(at: Sample) -> Tensor:
        error = (at.u(at.x, at.t, at.s) - at.v(at.x, at.t)).square().mean()
        return error / (error.detach() + 1e-3)

    straight = {"fm": torch.stack([regression(one) for one in samples(batch, given.draws, student, TIMES)])}
    assert largest(gradient(1.0), gradients(straight, student)) < 1e-12
    limit = gradients(MeanFlow(AdaptiveConfig(**COMMON)).loss(batch, nets, given), student)
    assert largest(gradient(0.0), limit) < 1e-12
    errors = [largest(gradient(alpha), limit) for alpha in (4e-3, 2e-3, 1e-3)]
    assert 1.7 < errors[0] / errors[1] < 2.3
    assert 1.7 < errors[1] / errors[2] < 2.3


def test_alphas_schedule() -> None:
    objective = AlphaFlow(AlphaFlowConfig(start=0.2, end=0.8))
    alphas = [objective.alpha(Step(i, Interpolant(), total=101)) for i in range(101)]
    assert alphas[:20] == [1.0] * 20
    assert alphas[50] == pytest.approx(0.5)
    assert alphas[54] == pytest.approx(1 / (1 + math.exp(25 * 0.04 / 0.6)))
    assert alphas[80:] == [0.0] * 21
    assert alphas == sorted(alphas, reverse=True)


def test_align_your_flow_fades_the_derivative_in() -> None:
    one = torch.ones(1, 1)

    def factors(**keys: float) -> list[float]:
        """What is left of a derivative of 1."""
        config, residual = AYFConfig(norm="none", **keys), Residual(0 * one, one, 0 * one)
        steps = [Step(i, Interpolant(), total=1000) for i in (0, 5, 10, 500)]
        return [float(config.error(residual, one, Dense(1), step, config.derivative)) for step in steps]

    assert factors(warmup=10, derivative=0.8) == pytest.approx([0, 0.4, 0.8, 0.8])
    assert factors(warmup=0.01) == [0, 0.5, 1, 1]
    assert factors() == [1] * 4
    batch, student = make_batch(False), random_student(RING)
    given, nets = Given(make_draws(batch)), exact_nets(student, RING)
    faded = AlignYourFlow(AYFConfig(warmup=10, norm="none", **COMMON)).loss(batch, nets, given)

    def regression(at: Sample) -> Tensor:  # what is left without the derivative
        return (at.u(at.x, at.t, at.s) - at.v(at.x, at.t)).square().mean()

    straight = {"fm": torch.stack([regression(one) for one in samples(batch, given.draws, student, TIMES)])}
    assert largest(gradients(faded, student), gradients(straight, student)) < 1e-12


# The exact flow map of a Gaussian is every method's answer.

PLAIN: dict[str, Any] = {"guidance": 0.0, "apart": 0.8, "reduction": "sample"}
EXACT: dict[str, FlowMap[Any]] = {
    "meanflow": MeanFlow(AdaptiveConfig(power=0, **PLAIN)),
    "imeanflow": ImprovedMeanFlow(AdaptiveConfig(power=0, **PLAIN)),
    "split": SplitMeanFlow(SplitConfig(**PLAIN)),
    "midpoint": SplitMeanFlow(SplitConfig(split="midpoint", **PLAIN)),
    "emd": AlignYourFlow(AYFConfig(norm="none", **PLAIN)),
    "lmd": AlignYourFlow(AYFConfig(norm="none", kind="lagrangian", **PLAIN)),
}


def gaussian_loss(objective: FlowMap[Any], shift: float = 0.0) -> Tensor:
    student = GaussianMap(GAUSSIAN).double()
    student.mean.data += shift
    step = Step(0, Interpolant(), seed=3)
    return total(objective.loss(gaussian_batch(64), exact_nets(student), step)).detach()


@pytest.mark.parametrize("name", list(EXACT))
def test_the_exact_flow_map_has_no_loss(name: str) -> None:
    assert float(gaussian_loss(EXACT[name])) < 1e-22
    assert float(gaussian_loss(EXACT[name], shift=0.1)) > 1e-5


def test_jumps_of_the_exact_flow_map_add_up() -> None:
    exact, batch = GaussianMap(GAUSSIAN).double(), gaussian_batch(64)
    g = torch.Generator().manual_seed(0)
    a_B, b_B, share_B = torch.rand(3, 64, generator=g, dtype=torch.float64)
    t_B, s_B = torch.maximum(a_B, b_B), torch.minimum(a_B, b_B)

    def average(x: Tensor, t_B: Tensor, s_B: Tensor) -> Tensor:
        return cast(Tensor, exact(x, t_B, batch.cond, batch.layout, s_B=s_B))

    together = through(average, batch.x0, t_B, s_B, share_B, batch.layout)
    assert largest(together, average(batch.x0, t_B, s_B)) < 1e-12
    t_B = t_B + 0.1
    assert largest(together, average(batch.x0, t_B, s_B)) > 1e-2


def test_alphaflows_euler_step_has_the_bias_of_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the exact map the error over alpha is of first order in alpha: its square falls fourfold."""
    losses = []
    for alpha in (0.1, 0.05, 0.025):
        objective = AlphaFlow(AlphaFlowConfig(power=0, **PLAIN))
        monkeypatch.setattr(objective, "alpha", lambda step, alpha=alpha: alpha)
        losses.append(float(gaussian_loss(objective)) / alpha)
    assert 3.4 < losses[0] / losses[1] < 4.6
    assert 3.7 < losses[1] / losses[2] < 4.3


def test_central_differences_have_a_bias_of_second_order() -> None:
    """At the exact map the error is of second order in their width: its square falls sixteenfold."""
    losses = [float(gaussian_loss(MeanFlow(AdaptiveConfig(power=0, central=h, **PLAIN)))) for h in (0.04, 0.02, 0.01)]
    assert 12 < losses[0] / losses[1] < 20
    assert 14 < losses[1] / losses[2] < 18


def test_shortcuts_have_the_bias_of_their_shortest_step() -> None:
    """At the exact map only steps of 2 / units differ, made as they are of two Euler steps: in first order."""
    losses = []
    for units in (16, 32, 64):
        only_shortest = Given(shortest_draws(units))
        objective = Shortcut(ShortcutConfig(units=units, **{**PLAIN, "apart": 1.0}))
        student = GaussianMap(GAUSSIAN).double()
        losses.append(float(total(objective.loss(gaussian_batch(64), exact_nets(student), only_shortest)).detach()))
    assert 3.4 < losses[0] / losses[1] < 4.6
    assert 3.6 < losses[1] / losses[2] < 4.4


def shortest_draws(units: int) -> dict[str, Tensor]:
    place = torch.linspace(0.01, 0.99, 64, dtype=torch.float64)
    drawn = {"length": torch.full_like(place, 0.999), "place": place, "apart": torch.zeros_like(place), "t": place}
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return drawn | {"noise": noise}


@pytest.mark.parametrize(("cls", "config"), METHODS)
def test_conformance(cls: type[FlowMap[Any]], config: Any) -> None:
    check_objective(cls, config())


def test_conformance_of_other_settings() -> None:
    check_objective(AlignYourFlow, AYFConfig(kind="lagrangian", warmup=0.1))
    check_objective(AlphaFlow, AlphaFlowConfig(start=0.0, end=1e-3))  # MeanFlow from the second iteration on
    check_objective(MeanFlow, AdaptiveConfig(velocity="data", draw="length", p_uncond=0.3))


def test_contract_and_refusals() -> None:
    contract = MeanFlow(AdaptiveConfig(rescale_t=2.0)).contract()
    assert (contract.sampler, contract.rescale_t, contract.two_time) == ("jump", 2.0, True)
    assert MeanFlow(AdaptiveConfig(gamma=0.3)).contract().sampling == "gamma:0.3"
    for config, values, message in [
        (AdaptiveConfig, {"velocity": "data", "guidance": 2.0}, "no teacher that could be guided"),
        (ShortcutConfig, {"units": 48}, "a power of 2, got 48"),
        (AYFConfig, {"kind": "lagrangian", "velocity": "data"}, "velocity must be 'teacher'"),
        (AlphaFlowConfig, {"start": 0.5, "end": 0.5}, "start must be below end"),
    ]:
        with pytest.raises(ValidationError, match=message):
            config(**values)


def test_from_the_command_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    tiny = ["train.steps=2", "train.batch_size=8", "backbone.pretrain=2", "backbone.width=8", "data.held_out=8"]
    assert main(["distill", "--method", "shortcut", "--backbone", "toy", "--out", str(run), *tiny]) == 0
    contract = json.loads((run / "student" / "config.json").read_text())["contract"]
    assert (contract["sampler"], contract["two_time"], contract["steps"]) == ("jump", True, [1, 2, 4])
    assert fewstep.load(run).sample(4, steps=2).shape == (4, 2)
