"""VD with a trained score of the student's samples, its keys, and the ramp of guidance, against closed forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from closed_forms import (
    GAUSSIAN,
    RING,
    Given,
    PolynomialStudent,
    draws,
    exact_nets,
    gaussian_batch,
    gradients,
    largest,
    random_student,
    ring_batch,
)
from fewstep_consistency.config import ConsistencyConfig
from fewstep_mdt.config import MDTConfig, VMConfig
from fewstep_mdt.vd import MDT, VelocityDistillation
from fewstep_mdt.vm import VelocityMatching
from fewstep_toy.analytic import AnalyticFlow, GaussianMap
from pydantic import ValidationError
from torch import Tensor, nn

import fewstep
from fewstep.config.resolve import check_needs
from fewstep.core.backbone import Backbone
from fewstep.core.batch import Batch, Condition
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense, Layout
from fewstep.core.objective import Nets, Step, means
from fewstep.core.times import TimeSampler
from fewstep.errors import FewstepError
from fewstep.testing import check_objective

SHIFT = torch.tensor([0.4, -0.3], dtype=torch.float64)
UNIFORM = TimeSampler(kind="uniform")


class TwoFaced(Backbone):
    """One network at positive times, another at negative ones."""

    def __init__(self, front: nn.Module, back: nn.Module) -> None:
        super().__init__()
        self.front, self.back = front, back

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        assert bool((t_B > 0).all()) or bool((t_B < 0).all())
        found: Tensor = self.front(x, t_B, cond, layout) if t_B[0] > 0 else self.back(x, -t_B, cond, layout)
        return found


def shifted() -> tuple[GaussianMap, AnalyticFlow]:
    """A student whose samples are a Gaussian with a wrong mean, and the exact velocity of those samples."""
    student, fakes = GaussianMap(GAUSSIAN).double(), AnalyticFlow(GAUSSIAN).double()
    student.mean.data += SHIFT
    fakes.means.data += SHIFT
    return student, fakes


def nets_with(score: str, student: Backbone, fakes: nn.Module) -> Nets:
    """A student beside a network of the fakes' velocity, in the place where ``score`` looks for it."""
    if score == "twin":
        return exact_nets(TwoFaced(student, fakes))
    return Nets({**exact_nets(student)._modules, "critic": fakes}, {})


def objective_of(score: str, **keys: Any) -> VelocityDistillation:
    return VelocityDistillation(MDTConfig(score=score, t=UNIFORM, **keys))


def given(batch: Batch, t: float | None = None) -> Given:
    """A step whose times are all ``t``, where that is given."""
    count = batch.layout.batch_size
    found = draws(batch.x0, count) | draws(batch.x0, count, seed=7)
    found |= {"noise/fakes": found["noise"].flip(0), "t/fakes": found["t"].flip(0)}
    return Given(found if t is None else found | {"t": torch.full((count,), t, dtype=torch.float64)})


@pytest.mark.parametrize(
    "keys",
    [
        {"score": "critic"},
        {"score": "critic", "critic_ratio": 3, "p_uncond": 0.5, "reduction": "sample"},
        {"score": "critic", "kind": "continuous", "vd_norm": "dmd"},
        {"score": "twin", "t_vd": UNIFORM},
        {"score": "twin", "vd_after": 0.2, "guidance_vd": {"start": 0.0, "end": 2.0}},
        {"score": "self", "vd_norm": "dmd", "t_vd": UNIFORM},
    ],
)
def test_conformance(keys: dict[str, Any]) -> None:
    check_objective(MDT, MDTConfig(**keys))


@pytest.mark.parametrize("score", ["critic", "twin"])
@pytest.mark.parametrize("t", [0.2, 0.7])
def test_with_the_exact_score_the_gradient_is_that_of_a_divergence(score: str, t: float) -> None:
    """v - vT is -t / (1 - t) times the difference of scores, dx_t / dx' is 1 - t and dF = -dx': so the gradient is
    2 lambda t / (1 - t)^2 times that of KL(fakes_t, target_t), which two Gaussians of equal width have in closed form.
    """
    student, fakes = shifted()
    batch = gaussian_batch(16)
    truth, variance = AnalyticFlow(GAUSSIAN).double().means[0], ((1 - t) * GaussianMap(GAUSSIAN).std) ** 2 + t**2

    def divergence(mean: Tensor) -> float:
        return float(((1 - t) * (mean - truth)).detach().square().sum() / (2 * variance))

    wide = torch.eye(2, dtype=torch.float64) * 1e-4
    slope = torch.tensor([divergence(student.mean + d) - divergence(student.mean - d) for d in wide]) / 2e-4
    loss = objective_of(score, lambda_vd=0.3).loss(batch, nets_with(score, student, fakes), given(batch, t))
    (gradient,) = gradients({"vd": loss["vd"]}, student)
    assert largest(gradient, 2 * 0.3 * t / (1 - t) ** 2 * slope / 2) < 1e-6  # a mean over 2 elements a sample
    assert bool((gradient.sign() == SHIFT.sign()).all())


@pytest.mark.parametrize("score", ["critic", "twin"])
def test_no_gradient_where_the_samples_are_right(score: str) -> None:
    batch, student = gaussian_batch(16), GaussianMap(GAUSSIAN).double()
    nets = nets_with(score, student, AnalyticFlow(GAUSSIAN).double())
    loss = objective_of(score).loss(batch, nets, given(batch))
    assert max(float(g.abs().max()) for g in gradients({"vd": loss["vd"]}, student)) < 1e-12


@pytest.mark.parametrize("score", ["critic", "twin"])
def test_a_trained_score_is_the_exact_one(score: str) -> None:
    """Flow matching on the samples of a fixed student converges to their velocity."""
    (student, exact), learnt = shifted(), PolynomialStudent(4)
    nets, objective, batch = nets_with(score, student, learnt), objective_of(score), gaussian_batch(4096)
    newton = torch.optim.LBFGS(learnt.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        newton.zero_grad()
        value = means(objective.loss(batch, nets, Step(0, Interpolant())))[score]
        value.backward()
        return value

    newton.step(closure)  # type: ignore[no-untyped-call]
    layout, t_B = Dense(512), torch.linspace(0.05, 0.95, 512, dtype=torch.float64)
    fakes = gaussian_batch(512, 3).x0 + SHIFT
    x = Interpolant().interpolate(fakes, torch.randn(512, 2, generator=torch.Generator().manual_seed(1)), t_B, layout)
    with torch.no_grad():
        found, wanted, target = (
            field(x, t_B, Condition(), layout) for field in (learnt, exact, AnalyticFlow(GAUSSIAN).double())
        )
    error, distance = ((found - other).square().mean().sqrt() for other in (wanted, target))
    assert error < 0.05
    assert distance > 0.3  # and it is not the teacher's


def test_a_score_learns_on_detached_samples() -> None:
    """The critic's loss leaves the student alone; the twin's reaches it through negative times only."""
    batch, (student, _), fakes = gaussian_batch(16), shifted(), PolynomialStudent()
    for score in ("critic", "twin"):
        loss = objective_of(score).loss(batch, nets_with(score, student, fakes), given(batch))
        assert max(float(g.abs().max()) for g in gradients({score: loss[score]}, student)) == 0
        assert max(float(g.abs().max()) for g in gradients({score: loss[score]}, fakes)) > 0
        assert max(float(g.abs().max()) for g in gradients({"vd": loss["vd"]}, fakes)) == 0


def test_the_norm_is_that_of_dmd2() -> None:
    """(x0 of the fakes' velocity - the teacher's x0) / mean |x' - the teacher's x0|, as DMD2 writes it, in x0."""
    batch, (student, fakes) = gaussian_batch(16), shifted()
    nets, step = nets_with("critic", student, fakes), given(batch)
    objective = objective_of("critic", vd_norm="dmd", lambda_vd=0.3)
    ours = gradients({"vd": objective.loss(batch, nets, step)["vd"]}, student)
    x, _, cond = objective.generate(batch, nets, step)
    t, layout = step.draws["t"][:, None], batch.layout
    x_t = (1 - t) * x.detach() + t * step.draws["noise"]
    real, fake = (x_t - t * field(x_t, step.draws["t"], cond, layout) for field in (nets.teacher, fakes))
    p_real, p_fake = x.detach() - real, x.detach() - fake
    direction = (p_real - p_fake) / p_real.abs().mean(1, keepdim=True)
    theirs = gradients({"dmd": 0.3 * 2 * (direction.detach() * x).mean()}, student)
    assert largest(ours, theirs) < 1e-10


def test_the_terms_of_an_iteration() -> None:
    """VM alone first; the twin learns from the first iteration, the critic with VD; between, the critic alone."""
    batch = gaussian_batch(4)
    student, fakes = shifted()

    def terms(config: MDTConfig) -> list[list[str]]:
        nets = nets_with(config.score, student, fakes)
        return [list(MDT(config).loss(batch, nets, Step(i, Interpolant(), total=8))) for i in range(8)]

    matching, both = ["vm"], ["vm", "vd"]
    assert terms(MDTConfig(vd_after=0.5)) == [matching] * 4 + [both] * 4
    assert terms(MDTConfig(vd_after=3)) == [matching] * 3 + [both] * 5
    assert terms(MDTConfig(vd_after=1)) == [matching] + [both] * 7  # one iteration, not the whole run
    assert terms(MDTConfig(vd_after=0.25, score="twin")) == [["vm", "twin"]] * 2 + [[*both, "twin"]] * 6
    assert terms(MDTConfig(vd_after=0.5, score="critic")) == [matching] * 4 + [[*both, "critic"]] * 4
    turn = [[*both, "critic"], ["critic"], ["critic"]]
    assert terms(MDTConfig(score="critic", critic_ratio=3)) == [*turn, *turn, *turn[:2]]
    assert list(MDT(MDTConfig(score="critic", lambda_vd=0)).networks()) == ["student"]


def test_only_a_share_or_a_ramp_reads_the_length_of_the_run() -> None:
    class Endless(Step):
        @property
        def total(self) -> int:
            raise AssertionError("read")

    batch, (student, _) = gaussian_batch(4), shifted()
    nets = exact_nets(student)
    for config in (MDTConfig(), MDTConfig(vd_after=2), MDTConfig(guidance_vm=3.0)):
        MDT(config).loss(batch, nets, Endless(0, Interpolant()))
    for config in (MDTConfig(vd_after=0.5), MDTConfig(guidance_vm={"start": 0.0, "end": 1.0})):
        with pytest.raises(AssertionError, match="read"):
            MDT(config).loss(batch, nets, Endless(0, Interpolant()))


@pytest.mark.parametrize("score", ["self", "critic"])
def test_vd_may_have_times_of_its_own(score: str) -> None:
    batch, (student, fakes) = gaussian_batch(64), shifted()
    nets, step = nets_with(score, student, fakes), Step(0, Interpolant())
    late = TimeSampler(mean=3.0, std=0.1)
    shared, apart = (MDT(MDTConfig(score=score, t=UNIFORM, t_vd=t_vd)) for t_vd in (None, late))
    for sum_of in (shared, apart):
        vm, vd = sum_of.objectives
        assert isinstance(vm, VelocityMatching)
        assert isinstance(vd, VelocityDistillation)
        matching, distilling = vm.targets(batch, nets, step), vd.targets(batch, nets, step)
        assert torch.equal(matching.t_B, shared.objectives[0].targets(batch, nets, step).t_B)  # type: ignore[attr-defined]
        if sum_of is apart:
            assert float(distilling.t_B.min()) > 0.9
        elif score == "self":
            assert torch.equal(matching.t_B, distilling.t_B)
    asked: list[Tensor] = []
    if score == "critic":  # it learns at these times too
        fakes.register_forward_pre_hook(lambda _module, args: asked.append(args[1]))
        apart.loss(batch, nets, step)
        assert len(asked) == 2
        assert float(torch.cat(asked).min()) > 0.9


@pytest.mark.parametrize("score", ["critic", "twin"])
def test_a_score_is_of_the_condition_that_the_samples_were_made_under(score: str) -> None:
    """Which may be dropped. The teacher sees the sample's own, and guides by VD's strength."""
    batch = ring_batch()
    student, critic, sign = random_student(RING), random_student(RING, 1), -1 if score == "twin" else 1
    nets = Nets({**exact_nets(student, RING)._modules, "critic": critic}, {})
    step = given(batch)
    step.draws["drop/fake"] = torch.tensor([0.1, 0.9, 0.2, 0.8, 0.3, 0.7])
    tokens, drop = batch.cond.tokens, step.draws["drop/fake"][:, None] < 0.5
    assert tokens is not None
    told = Condition(torch.where(drop, 0 * tokens, tokens))
    objective = objective_of(score, p_uncond=0.5, guidance_vm=7.0, guidance_vd=2.0, reduction="sample")
    found, losses = objective.targets(batch, nets, step), objective.loss(batch, nets, step)
    x = step.draws["noise_fake"] - student(step.draws["noise_fake"], torch.ones(6).double(), told, batch.layout)
    network = student if score == "twin" else critic
    for own in (False, True):
        t_B, noise = (step.draws[f"{name}/fakes" if own else name] for name in ("t", "noise"))
        x_t = Interpolant().interpolate(x.detach(), noise, t_B, batch.layout)
        v = network(x_t, sign * t_B, told, batch.layout)
        if own:
            assert largest(losses[score], (v - (noise - x)).square().mean(1)) < 1e-9
            continue
        c, u = (nets.teacher.backbone(x_t, t_B, cond, batch.layout) for cond in (batch.cond, batch.cond.negative()))
        assert largest(found.v_pred, v) < 1e-9
        assert largest(found.v_tgt, 3 * c - 2 * u) < 1e-9


def test_the_twins_term_has_a_weight() -> None:
    batch, (student, fakes) = gaussian_batch(4), shifted()
    for score, factor in (("twin", 3.0), ("critic", 1.0)):
        nets = nets_with(score, student, fakes)
        one, three = (
            objective_of(score, lambda_twin=w).loss(batch, nets, Step(0, Interpolant()))[score] for w in (1.0, 3.0)
        )
        assert largest(three, factor * one) < 1e-12


def test_guidance_ramps_over_the_run() -> None:
    g = torch.Generator().manual_seed(1)
    tokens = torch.nn.functional.one_hot(torch.randint(8, (6,), generator=g), 8).double()
    batch = Batch(torch.randn(6, 2, generator=g, dtype=torch.float64), Dense(6), Condition(tokens))
    nets = exact_nets(random_student(RING), RING)
    ramp = {"start": 1.0, "end": 3.0}
    for index, strength in ((0, 1.0), (5, 2.0), (10, 3.0)):
        step = Step(index, Interpolant(), total=11)
        moving, fixed = (VelocityMatching(VMConfig(guidance_vm=w)).targets(batch, nets, step) for w in (ramp, strength))
        assert largest(moving.v_tgt, fixed.v_tgt) < 1e-9
    assert ConsistencyConfig(guidance=ramp).guidance is not None
    with pytest.raises(ValidationError):
        VMConfig(guidance_vm={"start": 1.0})


def test_a_run_counts_the_passes_of_every_network(tmp_path: Path) -> None:
    """Evaluations of 4 iterations of 8 samples; student, teacher and critic by hand."""
    expected: dict[str, dict[str, tuple[int, int]]] = {
        # VM looks twice, fakes once; a critic learns in all 4 iterations, the student in 2 of them
        "critic": {"student": (3 * 2 + 2, 2 * 2), "teacher": (2 * 2, 0), "critic": (2 * 2 + 2, 4)},
        # VM twice, fakes, the score, its fit
        "twin": {"student": (5 * 4, 3 * 4), "teacher": (2 * 4, 0)},
    }
    for score, nets in expected.items():
        run = fewstep.distill(
            "mdt-vd",
            "toy",
            out=tmp_path / score,
            objective={"score": score, "critic_ratio": 2, "critic_lr": 2.0, "vd_after": 0},
            train={"steps": 4, "batch_size": 8, "log_every": 1},
            config={"backbone": {"pretrain": 0, "width": 8}},
        )
        rows = run.metrics()
        counts = {k: (v["forward"], v["backward"]) for k, v in rows[-1]["evaluations"].items()}
        assert counts == {name: (8 * forward, 8 * backward) for name, (forward, backward) in nets.items()}
        if score == "critic":
            assert [list(row["grad_norm"]) for row in rows] == [["student", "critic"], ["critic"]] * 2
            assert rows[-1]["lr"]["critic"] == 2 * rows[-1]["lr"]["student"]


def test_refusals() -> None:
    class OneSided(Backbone):
        provides = frozenset({"dense", "jvp"})

    with pytest.raises(FewstepError, match=r"(?s)'mdt-vd' needs 'negative_time'.*'OneSided'"):
        check_needs(MDT(MDTConfig(score="twin")), OneSided, method="mdt-vd")
    check_needs(MDT(MDTConfig(score="critic")), OneSided, method="mdt-vd")
    for keys in ({"velocity": "data"}, {"multiphase": 2}):
        with pytest.raises(ValidationError, match="needs velocity 'teacher' and multiphase 1"):
            MDTConfig(score="critic", **keys)
    with pytest.raises(ValidationError, match="vd_norm must be 'none'"):
        MDTConfig(kind="cm", vd_norm="dmd")
