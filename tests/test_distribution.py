"""DMD2 and SiD: against the formulas of their papers, against Gaussians in closed form, and what an iteration does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from closed_forms import Given, exact_nets, gradients, largest, total
from distribution_helpers import (
    DROPPED,
    LATE,
    MEAN,
    STD,
    TEACHER,
    ExactCritic,
    LinearStudent,
    drawn,
    noisy,
    objective_of,
    quadrature,
    tiny_nets,
    told,
)
from fewstep_distribution.config import CriticConfig, DMD2Config, SiDConfig, VSDConfig
from fewstep_distribution.critic import Critical
from fewstep_distribution.dmd2 import DMD2
from fewstep_distribution.sid import SiD
from fewstep_distribution.vsd import VSD, adapted
from torch import Tensor, nn

import fewstep
from fewstep.core.batch import Batch, Condition
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense, Layout
from fewstep.core.objective import Nets, Step
from fewstep.core.samplers import consistency
from fewstep.core.times import step_grid
from fewstep.errors import FewstepError
from fewstep.methods.point import UNIFORM
from fewstep.testing import TinyBackbone, check_objective, tiny_batch

METHODS: list[tuple[type[Critical[Any]], dict[str, Any]]] = [(DMD2, {}), (SiD, {}), (SiD, {"alpha": 1.2}), (VSD, {})]
TERMS = {DMD2: "dmd", SiD: "sid", VSD: "vsd"}


@pytest.mark.parametrize(("cls", "keys"), METHODS)
@pytest.mark.parametrize(
    "shared", [{}, {"steps": 3, "p_uncond": 0.5, "reduction": "sample", "critic_ratio": 2, "guidance": [0.0, 2.0]}]
)
def test_conformance(cls: type[Critical[Any]], keys: dict[str, Any], shared: dict[str, Any]) -> None:
    check_objective(cls, cls.Config(**keys, **shared))


# The formulas of the papers, sample by sample.


Sample = tuple[Tensor, Tensor, Tensor, Tensor, float]  # x, the predicted data of teacher and critic at x_t, x_t, t


def published(name: str, alpha: float = 1.0) -> Callable[[Sample], Tensor]:
    """The student's loss of one sample."""

    def dmd(at: Sample) -> Tensor:
        x, real, fake, *_ = at
        p_real, p_fake = x - real, x - fake
        direction = ((p_real - p_fake) / p_real.abs().mean()).detach()
        return 0.5 * (x - (x - direction).detach()).square()

    def sid(at: Sample) -> Tensor:
        x, real, fake, *_ = at
        return (real - fake) * ((real - x) - alpha * (real - fake)) / (x - real).abs().mean().detach()

    def vsd(at: Sample) -> Tensor:
        """w(t) (eps of the pretrained - eps of the LoRA), with the loss of the published code, whose gradient it is."""
        x, real, fake, x_t, t = at
        eps_real, eps_fake = (x_t - (1 - t) * real) / t, (x_t - (1 - t) * fake) / t
        alphas_cumprod = (1 - t) ** 2 / ((1 - t) ** 2 + t**2)
        gradient = ((1 - alphas_cumprod) * (eps_real - eps_fake)).detach()
        return 0.5 * (x - (x - gradient).detach()).square()

    return {"dmd": dmd, "sid": sid, "vsd": vsd}[name]


def by_hand(
    name: str, alpha: float, w: float, batch: Batch, nets: Nets, draws: dict[str, Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """(student's loss, critic's loss) of every sample, element by element. The critic sees the condition that the fake
    was made under, which may be dropped, and the teacher, of guidance strength w, the sample's own."""

    def call(net: nn.Module, x: Tensor, t: float, cond: Condition) -> Tensor:
        out: Tensor = net(x, torch.tensor([t], dtype=torch.float64), cond, Dense(1))
        return out

    found = []
    for i in range(batch.layout.batch_size):
        one, seen = batch.select(torch.tensor([i])), told(batch, draws, i)

        def of(key: str, shape: torch.Size = one.x0.shape, row: int = i) -> Tensor:
            return batch.layout.select(draws[key], torch.tensor([row]))[0].reshape(1, -1, shape[-1])

        z = of("noise_fake")
        x = z - call(nets.student, z, 1.0, seen)
        t, eps = float(draws[f"t/{name}"][i]), of(f"noise/{name}")
        x_t = (1 - t) * x + t * eps
        c, u = (call(nets.teacher.backbone, x_t, t, cond) for cond in (one.cond, one.cond.negative()))
        real, fake = x_t - t * ((1 + w) * c - w * u), x_t - t * call(nets.critic, x_t, t, seen)
        at, t, eps = t, float(draws["t/fakes"][i]), of("noise/fakes")
        flow = call(nets.critic, ((1 - t) * x + t * eps).detach(), t, seen) - (eps - x).detach()
        found.append((published(name, alpha)((x, real, fake, x_t, at)), flow.square()))
    return found


@pytest.mark.parametrize(("cls", "keys"), METHODS)
@pytest.mark.parametrize(("lengths", "guidance"), [((4, 4, 4), None), ((2, 5, 1), 0.5)])
@pytest.mark.parametrize("reduction", ["element", "sample"])
def test_the_formulas_of_the_papers(
    cls: type[Critical[Any]], keys: dict[str, Any], lengths: tuple[int, ...], guidance: float | None, reduction: str
) -> None:
    """Without a strength of its own, the objective takes the teacher's guidance, of strength 1."""
    batch, nets = tiny_batch(lengths, packed=lengths[0] != lengths[1]), tiny_nets()
    draws, name = drawn(batch), TERMS[cls]
    objective = objective_of(cls, reduction=reduction, p_uncond=DROPPED, guidance=guidance, **keys)
    losses = objective.loss(batch, nets, Given(draws))
    hand = by_hand(name, keys.get("alpha", 1.0), 1.0 if guidance is None else guidance, batch, nets, draws)
    for key, network, own in ((name, nets.student, 0), ("critic", nets.critic, 1)):
        parts = [one[own].reshape(-1) for one in hand]
        value = torch.cat(parts).mean() if reduction == "element" else torch.stack([p.mean() for p in parts]).mean()
        assert largest(total({key: losses[key]}), value) < 1e-12
        wanted = torch.autograd.grad(value, list(network.parameters()), retain_graph=True)
        assert largest(gradients({key: losses[key]}, network), wanted) < 1e-12


# Gaussians.


def expected(objective: Critical[Any], name: str, student: LinearStudent, t: float, scaled: bool = True) -> Tensor:
    """The expectation of the student's term, a sum over elements; ``scaled``: the division by its size is undone."""
    z, eps, weights = quadrature()
    batch, times = Batch(z, Dense(len(z))), torch.full((len(z),), t, dtype=torch.float64)
    critic = ExactCritic(student)
    nets = Nets({**exact_nets(student)._modules, "critic": critic}, {})
    draws = {"noise_fake": z, f"noise/{name}": eps, "noise/fakes": eps, f"t/{name}": times, "t/fakes": times}
    found = objective.loss(batch, nets, Given(draws))[name]
    x = (student.scale * z + student.mean).detach()
    real = (1 - t) * x + t * eps
    real = real - t * TEACHER(real, times, Condition(), batch.layout)
    size = (x - real).abs().mean(1) if scaled else torch.ones(len(z))
    value: Tensor = (weights * size * 2 * found).sum()
    return value


def divergence(student: LinearStudent, t: float) -> Tensor:
    """KL(fakes_t || teacher_t)."""
    wide, narrow = noisy(student.scale, t), noisy(torch.tensor(STD).double(), t)
    off = ((1 - t) * (student.mean - MEAN)) ** 2
    return 0.5 * (torch.log(narrow / wide) + (wide + off) / narrow - 1).sum()


STUDENTS = [LinearStudent((0.8, 0.3), (0.4, -1.0)), LinearStudent((STD, STD), (float(MEAN[0]), float(MEAN[1])))]


@pytest.mark.parametrize("t", [0.3, 0.7])
@pytest.mark.parametrize("student", STUDENTS, ids=["wrong", "right"])
def test_with_an_exact_critic_dmds_gradient_is_that_of_kl(student: LinearStudent, t: float) -> None:
    """KL of the noised Gaussians. v - vT = -t / (1 - t) times the scores' difference and dx_t = (1 - t) dx, so the
    gradient of g times its size, in predicted data, is t^2 / (1 - t)^2 that of KL. It vanishes at the target alone."""
    kl = divergence(student, t)
    wanted = [t**2 / (1 - t) ** 2 * g for g in torch.autograd.grad(kl, list(student.parameters()))]
    value = expected(objective_of(DMD2, reduction="sample"), "dmd", student, t)
    got = torch.autograd.grad(value, list(student.parameters()))
    assert largest(got, wanted) < 1e-12
    assert (max(float(g.abs().max()) for g in got) < 1e-12) == (student is STUDENTS[1])


@pytest.mark.parametrize("t", [0.3, 0.7])
@pytest.mark.parametrize("student", STUDENTS, ids=["wrong", "right"])
def test_with_an_exact_critic_vsds_gradient_is_that_of_kl(student: LinearStudent, t: float) -> None:
    """The difference of the predicted noise is -t times that of the scores, and dx_t = (1 - t) dx: the gradient is
    w(t) t / (1 - t) times that of KL(fakes_t || teacher_t)."""
    value = expected(objective_of(VSD, reduction="sample"), "vsd", student, t, scaled=False)
    got = torch.autograd.grad(value, list(student.parameters()))
    factor = t**2 / (t**2 + (1 - t) ** 2) * t / (1 - t)
    wanted = [factor * g for g in torch.autograd.grad(divergence(student, t), list(student.parameters()))]
    assert largest(got, wanted) < 1e-12
    assert (max(float(g.abs().max()) for g in got) < 1e-12) == (student is STUDENTS[1])


def fisher(student: LinearStudent, t: float) -> Tensor:
    """E |d|^2 over noisy fakes, with d the difference of the data that teacher and critic predict."""
    slopes = [(t - (1 - t) * s**2) / noisy(s, t) for s in (student.scale, torch.tensor(STD).double())]
    shift = slopes[1] * (1 - t) * (MEAN - student.mean) + MEAN - student.mean
    return t**2 * ((slopes[0] - slopes[1]) ** 2 * noisy(student.scale, t) + shift**2).sum()


@pytest.mark.parametrize("t", [0.3, 0.7])
@pytest.mark.parametrize("student", STUDENTS, ids=["wrong", "right"])
def test_with_an_exact_critic_sid_is_a_fisher_divergence(student: LinearStudent, t: float) -> None:
    """Both parts of the loss have the divergence as their mean, so alpha = 1 leaves 0. The critic moves with the
    student: by the chain rule dF = 2 d(first part) - d(|d|^2), where d holds the critic fixed, so that alpha = 1/2 has
    half the divergence's own gradient."""
    divergence = fisher(student, t)
    slope = torch.autograd.grad(divergence, list(student.parameters()))
    for alpha in (0.0, 0.5, 1.0, 1.2):
        value = expected(objective_of(SiD, reduction="sample", alpha=alpha), "sid", student, t)
        assert largest(value, (1 - alpha) * divergence) < 1e-12
        got = torch.autograd.grad(value, list(student.parameters()))
        if alpha == 0.5:
            assert largest(got, [0.5 * g for g in slope]) < 1e-12
        assert (max(float(g.abs().max()) for g in got) < 1e-12) == (student is STUDENTS[1])


# What an iteration does.


@pytest.mark.parametrize(("cls", "keys"), METHODS)
def test_no_term_reaches_the_network_of_the_other(cls: type[Critical[Any]], keys: dict[str, Any]) -> None:
    batch, nets = tiny_batch(), tiny_nets()
    losses = objective_of(cls, **keys).loss(batch, nets, Step(0, Interpolant()))
    (name,) = set(losses) - {"critic"}
    for term, trained, other in ((name, nets.student, nets.critic), ("critic", nets.critic, nets.student)):
        assert max(float(g.abs().max()) for g in gradients({term: losses[term]}, trained)) > 0
        assert max(float(g.abs().max()) for g in gradients({term: losses[term]}, other)) == 0
    assert all(p.grad is None for p in nets.teacher.parameters())


@pytest.mark.parametrize(("cls", "keys"), METHODS)
def test_both_terms_draw_their_times_as_the_config_says(cls: type[Critical[Any]], keys: dict[str, Any]) -> None:
    nets, asked = tiny_nets(), list[Tensor]()
    nets.critic.register_forward_pre_hook(lambda _module, args: asked.append(args[1]))
    objective_of(cls, t=LATE, **keys).loss(tiny_batch(), nets, Step(0, Interpolant()))
    assert len(asked) == 2
    assert float(torch.cat(asked).min()) > 0.98


def test_the_student_moves_once_in_so_many_iterations() -> None:
    objective = objective_of(DMD2, critic_ratio=3)
    batch, nets = tiny_batch(), tiny_nets()
    for index in range(6):
        terms = objective.loss(batch, nets, Step(index, Interpolant()))
        assert set(terms) == ({"critic"} if index % 3 else {"dmd", "critic"})
        assert ("student" in objective.phase(index).trains) == (index % 3 == 0)


class Watched(TinyBackbone):
    """A student that remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(seed=1)
        self.asked: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        self.asked.append((x.detach().clone(), t_B.detach().clone()))
        return super().forward(x, t_B, cond, layout, s_B=s_B)


def test_a_student_of_several_steps_is_trained_where_its_sampler_takes_it() -> None:
    """Under the condition that it sees, which may be dropped."""
    objective = objective_of(DMD2, steps=4, rescale_t=3.0, critic_ratio=1, p_uncond=0.5)
    batch, nets = tiny_batch(), tiny_nets()
    contract, student = objective.contract(), Watched().double()
    nets = Nets({**nets._modules, "student": student}, {})
    trained = set()
    for index in range(12):
        step = Step(index, Interpolant())
        student.asked.clear()
        losses = objective.loss(batch, nets, step)
        simulated = copy.copy(student.asked)
        student.asked.clear()
        noise = step.randn_like(batch.x0, "noise_fake")
        seen = batch.cond.dropped(step.times(batch.layout, UNIFORM, "drop/fake") < 0.5)
        consistency(student, noise, seen, batch.layout, contract.grid(4), step)
        for (x, t_B), (x_sampler, t_sampler) in zip(simulated, student.asked, strict=False):
            assert largest(x, x_sampler) < 1e-12
            assert largest(t_B, t_sampler) < 1e-12
        trained.add(len(simulated))
        assert any(g.any() for g in gradients({"dmd": losses["dmd"]}, student))
    assert trained == {1, 2, 3, 4}
    assert (contract.sampler, contract.steps, contract.rescale_t) == ("consistency", (4,), 3.0)
    assert list(contract.times) == step_grid(4, 3.0)[:-1]
    assert set(contract.grid(3)) - {0.0} < set(contract.times)


@pytest.mark.parametrize(("method", "student_term"), [("dmd2", 0), ("sid", 1), ("vsd", 0)])
def test_a_run_generates_once_an_iteration(method: str, student_term: int, tmp_path: Path) -> None:
    """Evaluations of 4 iterations of 8 samples, of which 2 train the student; SiD looks back through both networks."""
    run = fewstep.distill(
        method,
        "toy",
        out=tmp_path / "run",
        objective={"critic_ratio": 2, "critic_lr": 3.0},
        train={"steps": 4, "batch_size": 8, "log_every": 1},
        config={"backbone": {"pretrain": 0, "width": 8}},
    )
    rows = run.metrics()
    counts = {k: (v["forward"] // 8, v["backward"] // 8) for k, v in rows[-1]["evaluations"].items()}
    looks = 2 * student_term
    assert counts == {"student": (4, 2), "teacher": (2, looks), "critic": (4 + 2, 4 + looks)}
    assert [list(row["grad_norm"]) for row in rows] == [["student", "critic"], ["critic"]] * 2
    assert rows[0]["lr"]["critic"] == 3 * rows[0]["lr"]["student"]


def test_defaults_are_the_papers() -> None:
    for config in (DMD2Config(), SiDConfig()):
        assert isinstance(config, CriticConfig)
        assert (config.steps, config.critic_ratio, config.t.kind) == (1, 5, "uniform")
    assert SiDConfig().alpha == 1.0
    assert (VSDConfig().critic_ratio, VSDConfig().critic_lr, VSDConfig().t.kind) == (5, 10.0, "uniform")


def test_the_critic_of_vsd_is_the_teacher_with_low_rank_adapters() -> None:
    build = objective_of(VSD, rank=2).networks()["critic"].build
    assert build is not None
    plain, batch, t_B = TinyBackbone(seed=3).double(), tiny_batch(), torch.tensor([0.2, 0.5, 0.9]).double()
    critic: Any = build(copy.deepcopy(plain))
    trained = {name: p for name, p in critic.named_parameters() if p.requires_grad}
    assert {name.rsplit(".", 1)[1] for name in trained} == {"down", "up"}
    assert len(trained) == 4
    given = (batch.x0, t_B, batch.cond, batch.layout)
    assert torch.equal(critic(*given), plain(*given))
    for p in trained.values():
        nn.init.normal_(p)
    assert int(torch.linalg.matrix_rank(critic.inner.weight - plain.inner.weight)) == 2
    assert largest(critic(*given), plain(*given)) > 0.1


def test_without_linear_layers_there_is_nothing_to_adapt() -> None:
    with pytest.raises(FewstepError, match="LinearStudent has none"):
        adapted(LinearStudent((1.0, 1.0), (0.0, 0.0)), 4)
