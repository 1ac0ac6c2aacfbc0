"""TwinFlow: against the published code's formulas, sample by sample, and against exact flow maps of Gaussians."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from closed_forms import GAUSSIAN, Given, gaussian_batch, gradients, largest, total
from distribution_helpers import LATE, STD, TEACHER, ExactCritic, LinearStudent, quadrature
from fewstep_distribution.config import TwinFlowConfig
from fewstep_distribution.twinflow import TwinFlow
from fewstep_toy.analytic import AnalyticFlow, GaussianMap
from pydantic import ValidationError
from torch import Tensor, nn

import fewstep
from fewstep.config.resolve import check_needs, check_sampler
from fewstep.core.backbone import Backbone, Teacher
from fewstep.core.batch import Batch, Condition
from fewstep.core.guidance import Guidance
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense, Layout
from fewstep.core.objective import Nets, Step
from fewstep.errors import FewstepError
from fewstep.testing import TinyBackbone, check_objective, tiny_batch

KEYS: list[dict[str, Any]] = [
    {},
    {"power": 0.0, "clip": 100.0, "near": 0.3, "guidance": 0.5},
    {"velocity": "data", "reduction": "sample", "p_uncond": 0.5},
    {"guidance": [0.0, 2.0]},
]


@pytest.mark.parametrize("keys", KEYS)
def test_conformance(keys: dict[str, Any]) -> None:
    check_objective(TwinFlow, TwinFlowConfig(**keys))


def beginning(first: int) -> dict[str, Tensor]:
    """The draw that begins the parts with this one."""
    return {"part": torch.tensor([(first + 0.5) / 4])}


def parts(count: int, first: int) -> list[list[int]]:
    """The samples of the four parts: one-step, near, any, fake."""
    return [[i for i in range(count) if (i + first) % 4 == part] for part in range(4)]


def tiny_nets() -> Nets:
    student, teacher = (TinyBackbone(seed=seed).double() for seed in (1, 3))
    return Nets({"student": student, "teacher": Teacher(teacher, Guidance(2.0))}, {})


LENGTHS = [(3,) * 9, (2, 5, 1, 3, 4, 1, 2, 6, 1)]


@pytest.mark.parametrize("lengths", LENGTHS, ids=["dense", "ragged"])
@pytest.mark.parametrize("keys", [*KEYS[:2], {"velocity": "data", "reduction": "sample"}])
@pytest.mark.parametrize("first", [0, 2])
def test_the_formulas_of_the_published_code(lengths: tuple[int, ...], keys: dict[str, Any], first: int) -> None:
    """The teacher's own guidance has strength 1; it never sees a dropped condition."""
    config = TwinFlowConfig(**keys, p_uncond=0.5)
    batch, nets = tiny_batch(lengths, packed=lengths[0] != lengths[1]), tiny_nets()
    g, count = torch.Generator().manual_seed(0), len(lengths)
    one, near, _, fake = parts(count, first)
    draws = beginning(first)
    for name in ("noise", "noise_fake", "noise/gap"):
        draws[name] = torch.randn(batch.x0.shape, generator=g, dtype=torch.float64)
    for name in ("t", "s", "t/gap", "drop/main"):
        draws[name] = 0.1 + 0.8 * torch.rand(count, generator=g, dtype=torch.float64)
    losses = TwinFlow(config).loss(batch, nets, Given(draws))

    def call(x: Tensor, t: float, s: float, cond: Condition) -> Tensor:
        times = (torch.tensor([value], dtype=torch.float64) for value in (t, s))
        t_B, s_B = times
        found: Tensor = nets.student(x, t_B, cond, Dense(1), s_B=s_B)
        return found

    def of(i: int, name: str | None = None) -> Tensor:
        values = batch.x0 if name is None else draws[name]
        return batch.layout.select(values, torch.tensor([i]))[0].reshape(1, -1, 3)

    def barron(pred: Tensor, target: Tensor) -> Tensor:
        """Element by element, the published loss at alpha = 1 and c = 0.001 for power 1/2."""
        mse = (pred - target).square().mean()
        weight = (mse / 1e-6 + 1) ** -0.5 / 1e-3 if config.power else torch.ones(())
        return weight.detach() * (pred - target).square()

    found: dict[str, list[Tensor]] = {"flow": [], "twin": [], "gap": []}
    for i in range(count):
        own, z, zeros = batch.select(torch.tensor([i])).cond, of(i, "noise"), torch.zeros_like(of(i)).reshape(-1)
        cond = own.negative() if float(draws["drop/main"][i]) < 0.5 else own
        t = config.interval + (1 - config.interval) * float(draws["t"][i])
        t, s = (1.0, 0.0) if i in one else (t, t - float(draws["s"][i]) * t * (config.near if i in near else 1))
        if i in fake:
            start = of(i, "noise_fake")
            x = (start - call(start, 1.0, 0.0, cond)).detach()
            pred = call((1 - t) * x + t * z, -t, -t, cond)
            parted = {"twin": barron(pred, z - x)}
        else:
            x_t = (1 - t) * of(i) + t * z
            pred, v = call(x_t, t, s, cond), z - of(i)
            if config.velocity == "teacher":
                t_B, w = torch.tensor([t], dtype=torch.float64), float(keys.get("guidance", 1.0))
                c, u = (nets.teacher.backbone(x_t, t_B, seen, Dense(1)) for seen in (own, own.negative()))
                v = (1 + w) * c - w * u
            t_m = max(t - config.interval, s)
            rest = call(x_t - config.interval * v, t_m, s, cond) * (t_m - s)
            near_end = t < s + config.interval
            left = pred - rest / (t - s) if near_end else (pred * (t - s) - rest) / config.interval
            target = pred.detach() - (left - v).clamp(-config.clip, config.clip).detach()
            parted = {"flow": barron(pred, target)}
        if i in one:
            t_g = config.interval + (1 - config.interval) * float(draws["t/gap"][i])
            x_g = ((1 - t_g) * (x_t - pred) + t_g * of(i, "noise/gap")).detach()
            push = call(x_g, -t_g, -t_g, cond) - call(x_g, t_g, t_g, cond)
            parted["gap"] = 4 * 0.5 * barron(pred, (pred - push.clamp(-config.clip, config.clip)).detach())
        for name, values in found.items():
            values.append(parted[name].reshape(-1) if name in parted else zeros)
    for name, values in found.items():
        sample = config.reduction == "sample"
        value = torch.stack([v.mean() for v in values]).mean() if sample else torch.cat(values).mean()
        assert largest(total({name: losses[name]}), value) < 1e-9
        wanted, got = (
            torch.autograd.grad(of_term, list(nets.student.parameters()), retain_graph=True)
            for of_term in (value, total({name: losses[name]}))
        )
        assert largest(got, wanted) < 1e-9
        assert max(float(g.abs().max()) for g in wanted) > 1e-3


def test_no_step_along_the_teachers_path_crosses_a_jump() -> None:
    """Times less than D above the edge, where the teacher's guidance begins."""
    nets, step = tiny_nets(), Step(0, Interpolant(), edges=(0.5,))
    times: list[Tensor] = []
    nets.student.register_forward_pre_hook(lambda _module, args: times.append(args[1].abs().double()))
    TwinFlow(TwinFlowConfig(interval=0.4)).loss(tiny_batch((1,) * 64), nets, step)
    _, late, early, *_ = times  # behind those of the fakes
    assert bool(((late > 0.5) & (late - 0.4 < 0.5)).any())
    assert not bool(((late > 0.5) & (early < 0.5 - 1e-12)).any())


# Gaussians.


class Twin(Backbone):
    """A flow map at positive times, its own velocity at s = t, and another velocity at negative times."""

    def __init__(self, average: nn.Module, own: nn.Module, twin: nn.Module) -> None:
        super().__init__()
        self.average, self.own, self.twin = average, own, twin

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        assert s_B is not None
        jumps = self.average(x, t_B.abs(), cond, layout, s_B=s_B.abs())
        own, twin = (net(x, t_B.abs(), cond, layout) for net in (self.own, self.twin))
        found = torch.where(layout.expand((t_B == s_B).to(x), x) > 0, own, jumps)
        return torch.where(layout.expand((t_B < 0).to(x), x) > 0, twin, found)


def exactly(student: Twin) -> Nets:
    return Nets({"student": student, "teacher": Teacher(AnalyticFlow(GAUSSIAN).double())}, {})


def fourfold(t: float, s: float = 0.5) -> tuple[Batch, dict[str, Tensor], Tensor]:
    """Every node of the quadrature once in each part, with equal times, and the weights."""
    z, eps, weights = quadrature()
    count = 4 * len(z)
    times = {"t": t, "s": s, "t/gap": t}
    draws = {name: torch.full((count,), value, dtype=torch.float64) for name, value in times.items()}
    nodes = {"noise": eps, "noise_fake": z, "noise/gap": eps}
    draws |= beginning(0) | {name: values.repeat_interleave(4, 0) for name, values in nodes.items()}
    return Batch(z.repeat_interleave(4, 0), Dense(count)), draws, weights.repeat_interleave(4, 0)


def test_an_exact_flow_map_has_no_residual_but_that_of_the_difference() -> None:
    """With the exact map the residual is F + (t - s) dF/dt - v = 0; a step of v instead of the path leaves O(D)."""
    sizes, batch = [], gaussian_batch(64)
    student = Twin(GaussianMap(GAUSSIAN).double(), TEACHER, TEACHER)
    for interval in (0.004, 0.002):
        config = TwinFlowConfig(power=0.0, interval=interval)
        losses = TwinFlow(config).loss(batch, exactly(student), Step(0, Interpolant(), seed=1))
        sizes.append(float(losses["flow"].detach().mean()) ** 0.5)
        assert float(losses["gap"].detach().abs().max()) < 1e-20  # the right samples at any interval
    assert sizes[1] < 2e-3
    assert sizes[0] / sizes[1] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("t", [0.3, 0.8])
def test_the_gap_is_the_gradient_of_a_divergence(t: float) -> None:
    """Samples with a wrong mean, both velocities exact: the difference is -t / (1 - t)^2 times the gradient of
    KL(fakes_t || flow_t), d (1 - t)^2 / variance for the distance d of the means, and the loss is 2 * 0.5 times that of
    F = -x."""
    off = torch.tensor([0.3, -0.2], dtype=torch.float64)
    average, fakes = GaussianMap(GAUSSIAN).double(), AnalyticFlow(GAUSSIAN).double()
    average.mean.data += off
    fakes.means.data += off
    batch, draws, _ = fourfold((t - 0.01) / 0.99)
    config = TwinFlowConfig(power=0.0, reduction="sample")
    losses = TwinFlow(config).loss(batch, exactly(Twin(average, TEACHER, fakes)), Given(draws))
    (got,) = gradients({"gap": losses["gap"]}, average)
    slope = off * (1 - t) ** 2 / ((1 - t) ** 2 * STD**2 + t**2)
    assert largest(got, 2 * 0.5 * t / (1 - t) ** 2 * slope / 2) < 1e-9  # a mean over two elements a sample


@pytest.mark.parametrize("t", [0.3, 0.8])
@pytest.mark.parametrize("exact", [True, False])
def test_the_twin_learns_the_velocity_of_the_samples(t: float, exact: bool) -> None:
    """Of a student whose samples are another Gaussian than the data, the exact velocity has no gradient on average."""
    average = LinearStudent((0.8, 0.3), (0.4, -1.0))
    twin = ExactCritic(average if exact else LinearStudent((STD, STD), (0.4, -1.0)))
    batch, draws, weights = fourfold((t - 0.01) / 0.99)
    config = TwinFlowConfig(power=0.0, reduction="sample")
    losses = TwinFlow(config).loss(batch, exactly(Twin(average, TEACHER, twin)), Given(draws))
    found = torch.autograd.grad((weights * losses["twin"]).sum(), list(twin.parameters()))
    assert (max(float(g.abs().max()) for g in found) < 1e-12) == exact


def test_all_times_are_drawn_as_the_config_says() -> None:
    """Of the flow, of the fakes and of the gap; a finite difference reaches back by its interval."""
    nets, asked = tiny_nets(), list[Tensor]()
    nets.student.register_forward_pre_hook(lambda _module, args: asked.append(args[1].abs()))
    TwinFlow(TwinFlowConfig(t=LATE, interval=0.01)).loss(tiny_batch((1,) * 16), nets, Step(0, Interpolant()))
    assert len(asked) == 5
    assert float(torch.cat(asked).min()) > 0.97


def test_the_parts_take_turns() -> None:
    """Every sample of a small batch is in every part at some time."""
    seen: list[set[float]] = [set(), set()]
    for index in range(40):
        nets, step = tiny_nets(), Step(index, Interpolant())
        times: list[list[float]] = []
        nets.student.register_forward_pre_hook(lambda _module, args, times=times: times.append(args[1].tolist()))
        TwinFlow(TwinFlowConfig()).loss(tiny_batch((2, 2)), nets, step)
        main = times[1]  # behind that of the fakes
        for sample, t in enumerate(main):
            seen[sample].add(1.0 if t == 1 else -1.0 if t < 0 else 0.0)
    assert seen == [{-1.0, 0.0, 1.0}] * 2


def test_a_run(tmp_path: Path) -> None:
    """Evaluations of each sample: fakes, the average, that before it, the gap's two; the teacher once."""
    run = fewstep.distill(
        "twinflow",
        "toy",
        out=tmp_path / "run",
        train={"steps": 4, "batch_size": 8, "log_every": 1},
        config={"backbone": {"pretrain": 0, "width": 8}},
    )
    rows = run.metrics()
    counts = {k: (v["forward"] / 32, v["backward"] / 32) for k, v in rows[-1]["evaluations"].items()}
    assert counts == {"student": (5, 1), "teacher": (1, 0)}
    contract = run.student().contract
    assert (contract.sampler, contract.two_time, contract.steps) == ("jump", True, (1, 2, 4))


def test_refusals() -> None:
    class OneSided(Backbone):
        provides = frozenset({"dense", "two_time"})

    with pytest.raises(FewstepError, match=r"(?s)'twinflow' needs 'negative_time'.*'OneSided'"):
        check_needs(TwinFlow(TwinFlowConfig()), OneSided, method="twinflow")
    check_sampler(TwinFlow(TwinFlowConfig()), "twinflow")
    with pytest.raises(ValidationError, match="guidance must be none"):
        TwinFlowConfig(velocity="data", guidance=2.0)
