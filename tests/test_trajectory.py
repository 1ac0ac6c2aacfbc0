"""The trajectory methods against their papers' formulas, and on a Gaussian whose paths are known in closed form."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from closed_forms import GAUSSIAN, Given, draws, exact_nets, gaussian_batch, gradients, largest, total
from fewstep_toy.analytic import AnalyticFlow
from fewstep_trajectory.config import KDConfig, PeRFlowConfig, ProgressiveConfig, ReflowConfig
from fewstep_trajectory.pairs import KnowledgeDistillation, Reflow
from fewstep_trajectory.perflow import PeRFlow
from fewstep_trajectory.progressive import Progressive
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

import fewstep
from fewstep.config.train import TrainConfig
from fewstep.core.backbone import Backbone, Teacher
from fewstep.core.batch import Batch, Condition
from fewstep.core.dataset import Dataset
from fewstep.core.guidance import Guidance
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense, Layout
from fewstep.core.objective import Nets, Objective, Step
from fewstep.core.pairs import Pair, PairsConfig, TeacherPairs
from fewstep.core.samplers import euler
from fewstep.core.times import TimeSampler, step_grid
from fewstep.errors import FewstepError
from fewstep.testing import TinyBackbone, check_objective, tiny_batch

STEPS = 6


def pair_of(batch: Batch, seed: int = 3) -> Pair:
    noise = torch.randn(batch.x0.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Pair(batch.x0, batch.layout, batch.cond, noise=noise)


BATCHES = {"dense": tiny_batch(), "packed": tiny_batch(packed=True), "ragged": tiny_batch((2, 5, 1), packed=True)}
LENGTHS = {"dense": (4, 4, 4), "packed": (4, 4, 4), "ragged": (2, 5, 1)}


def rows_of(x: Tensor, kind: str) -> list[Tensor]:
    """[N, 3] of each sample."""
    return list(x.reshape(-1, 3).split(LENGTHS[kind]))


def plain(error: list[Tensor], config: Any) -> Tensor:
    """The loss from the errors of each sample, from the formulas of the keys."""
    if config.reduction == "element":
        assert config.loss == "l2"
        return torch.cat(error).square().mean()
    squares = torch.stack([one.square().mean() for one in error])
    return (squares if config.loss == "l2" else (squares + config.huber**2).sqrt() - config.huber).mean()


KEYS: list[dict[str, Any]] = [{}, {"reduction": "element"}, {"loss": "pseudo-huber", "huber": 0.3}]


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("kind", BATCHES)
def test_kd_is_the_papers_loss(kind: str, keys: dict[str, Any]) -> None:
    """|| z - F(z, 1) - Phi_T(z) ||^2, a sample alone at a time."""
    pair, student = pair_of(BATCHES[kind]), TinyBackbone().double()
    nets, config = Nets({"student": student}, {}), KDConfig(**keys)
    ours = KnowledgeDistillation(config).loss(pair, nets, Given({}))
    answer = student(pair.noise, torch.ones(3, dtype=torch.float64), pair.cond, pair.layout)
    parts = zip(*(rows_of(x, kind) for x in (pair.noise, answer, pair.x0)), strict=True)
    expected = plain([z - F - end for z, F, end in parts], config)
    assert float(total(ours)) == pytest.approx(float(expected), rel=1e-12)
    assert largest(gradients(ours, student), list(torch.autograd.grad(expected, list(student.parameters())))) < 1e-12


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("kind", BATCHES)
def test_reflow_is_the_papers_loss(kind: str, keys: dict[str, Any]) -> None:
    """|| (X1 - X0) - v(X_t, t) ||^2 with X_t = t X1 + (1 - t) X0, where X0 is the noise and t runs the other way."""
    pair, student = pair_of(BATCHES[kind]), TinyBackbone().double()
    nets, config = Nets({"student": student}, {}), ReflowConfig(**keys)
    t_B = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    ours = Reflow(config).loss(pair, nets, Given({"t": t_B}))
    parts = zip(rows_of(pair.x0, kind), rows_of(pair.noise, kind), t_B.tolist(), strict=True)
    x_t = torch.cat([(1 - t) * data + t * noise for data, noise, t in parts]).reshape(pair.x0.shape)
    answer = student(x_t, t_B, pair.cond, pair.layout)
    parts_of = zip(*(rows_of(x, kind) for x in (answer, pair.noise, pair.x0)), strict=True)
    expected = plain([F - (noise - data) for F, noise, data in parts_of], config)
    assert float(total(ours)) == pytest.approx(float(expected), rel=1e-12)
    assert largest(gradients(ours, student), list(torch.autograd.grad(expected, list(student.parameters())))) < 1e-12


def test_reflow_draws_its_times_as_the_config_says() -> None:
    student, asked = TinyBackbone().double(), list[Tensor]()
    student.register_forward_pre_hook(lambda _module, args: asked.append(args[1]))
    config = ReflowConfig(t=TimeSampler(mean=5.0, std=0.1))
    Reflow(config).loss(pair_of(BATCHES["dense"]), Nets({"student": student}, {}), Step(0, Interpolant()))
    assert float(torch.cat(asked).min()) > 0.98


@pytest.mark.parametrize("method", [KnowledgeDistillation, Reflow])
def test_conformance(method: type[Objective[Any]]) -> None:
    found = []
    for kind in BATCHES:
        check_objective(method, batch=pair_of(BATCHES[kind]))
    for kind in ("dense", "packed"):
        student = TinyBackbone().double()
        given = Given({"t": torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)})
        loss = method(method.Config()).loss(pair_of(BATCHES[kind]), Nets({"student": student}, {}), given)
        found.append([total(loss).detach(), *gradients(loss, student)])
    assert largest(*found) < 1e-12


class Points(Dataset):
    """Of the Gaussian, in float64."""

    def __len__(self) -> int:
        return 64

    def batch(self, indices: list[int], generator: torch.Generator) -> Batch:
        return gaussian_batch(64).select(torch.tensor(indices))


def shrink(times: list[float]) -> Tensor:
    """What Euler steps at these times multiply x - (1 - t) m by. The velocity of N((1 - t) m, sigma^2) with
    sigma^2 = (1 - t)^2 s^2 + t^2 is (x - (1 - t) m) (sigma^2)' / 2 sigma^2 - m."""
    flow, factor = AnalyticFlow(GAUSSIAN), 1.0
    for t, s in pairwise(times):
        slope = (t - (1 - t) * flow.std**2) / ((1 - t) ** 2 * flow.std**2 + t**2)
        factor *= 1 - (t - s) * slope
    return torch.tensor(factor, dtype=torch.float64)


def mean() -> Tensor:
    return AnalyticFlow(GAUSSIAN).double().means[0].detach()


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    teacher = Teacher(AnalyticFlow(GAUSSIAN).double())
    pairs = TeacherPairs(PairsConfig(count=64, steps=STEPS), Points(None, teacher.backbone), teacher)
    pairs.prepare(torch.device("cpu"))
    return pairs.batch(list(range(64)), torch.Generator())


class Line(Backbone):
    """F(x, t) = a(t) (x - (1 - t) m) - m, where x_t lies on lines from m + k z to z: a = (1 - k) / ((1 - t) k + t)."""

    def __init__(self, k: Tensor) -> None:
        super().__init__()
        self.k = nn.Parameter(k.clone())

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        t = layout.expand(t_B, x)
        return (1 - self.k) / ((1 - t) * self.k + t) * (x - (1 - t) * mean()) - mean()


def test_pairs_of_a_gaussian_end_where_euler_steps_do(pair: Pair) -> None:
    assert largest(pair.x0, mean() + shrink(step_grid(STEPS)) * pair.noise) < 1e-12


@pytest.mark.parametrize("method", [KnowledgeDistillation, Reflow])
def test_the_straight_flow_of_the_pairs_has_no_loss(method: type[Objective[Any]], pair: Pair) -> None:
    """Not that of the exact flow: what is learnt is the teacher's sampler, with the error of its steps."""
    objective, step = method(method.Config()), Given(draws(pair.x0, 64))

    def loss(k: Tensor) -> float:
        return float(total(objective.loss(pair, exact_nets(Line(k)), step)))

    k = shrink(step_grid(STEPS))
    exact = torch.tensor(AnalyticFlow(GAUSSIAN).std, dtype=torch.float64)
    assert loss(k) < 1e-24
    assert loss(exact) > 1e-4
    noise, one = pair.noise, [1.0, 0.0]
    for grid in (one, step_grid(5)):  # straight paths: one step is as good as five
        ends = euler(Line(k), noise, Condition(), Dense(64), grid, Given({}, interpolant=Interpolant()))
        assert largest(ends, pair.x0) < 1e-12


@pytest.mark.parametrize("method", [KnowledgeDistillation, Reflow])
def test_training_finds_it(method: type[Objective[Any]], pair: Pair) -> None:
    student, objective = Line(torch.tensor(2.0, dtype=torch.float64)), method(method.Config())
    adam = torch.optim.Adam(student.parameters(), 0.05)
    for i in range(200):
        adam.param_groups[0]["lr"] = 0.05 * (1 - i / 200)
        adam.zero_grad()
        total(objective.loss(pair, exact_nets(student), Given(draws(pair.x0, 64, seed=i)))).backward()
        adam.step()
    assert float(student.k) == pytest.approx(float(shrink(step_grid(STEPS))), abs=1e-3)


NOISE = {kind: pair_of(BATCHES[kind], seed=9).noise for kind in BATCHES}


def trio() -> tuple[TinyBackbone, Teacher, TinyBackbone, Nets]:
    """A student, a guided teacher and the student of an earlier stage, all different."""
    student, earlier = TinyBackbone().double(), TinyBackbone(seed=7).double()
    teacher = Teacher(TinyBackbone(seed=5).double(), Guidance(2.0))
    return student, teacher, earlier, Nets({"student": student, "teacher": teacher, "earlier": earlier}, {})


def sample_of(batch: Batch, i: int) -> Batch:
    return batch.select(torch.tensor([i]))


@pytest.mark.parametrize("weight", ["velocity", "truncated-snr"])
@pytest.mark.parametrize(("stage", "rescale_t"), [(0, 3.0), (1, 1.0)])
@pytest.mark.parametrize("kind", BATCHES)
def test_progressive_is_the_papers_algorithm(kind: str, stage: int, rescale_t: float, weight: str) -> None:
    """Algorithm 2 of arXiv 2202.00512, sample by sample: two DDIM steps, a target of x, its weighted distance. For a
    path without alpha^2 + sigma^2 = 1 the weight of x is divided by t^2 where the distance of velocities has none."""
    config = ProgressiveConfig(steps=(4, 2), iterations=10, weight=weight, rescale_t=rescale_t)
    student, teacher, earlier, nets = trio()
    batch, steps = BATCHES[kind], (4, 2)[stage]
    step = Given(
        {"piece": torch.tensor([0.0, 0.49, 0.99], dtype=torch.float64), "noise": NOISE[kind]}, index=10 * stage
    )
    ours = Progressive(config).loss(batch, nets, step)
    lines = []
    for i, number in enumerate([0, 1, 3] if steps == 4 else [0, 0, 1]):
        one, eps = sample_of(batch, i), batch.layout.select(NOISE[kind], torch.tensor([i]))[0]
        even = [1 - (number + part) / steps for part in (0, 0.5, 1)]
        t, middle, end = (rescale_t * at / (1 + (rescale_t - 1) * at) for at in even)

        def ddim(z: Tensor, at: float, to: float, one: Batch = one) -> Tensor:
            field, at_B = teacher if stage == 0 else earlier, torch.tensor([at], dtype=torch.float64)
            x = z - at * field(z, at_B, one.cond, one.layout)
            return (1 - to) * x + to / at * (z - (1 - at) * x)

        z = (1 - t) * one.x0 + t * eps
        with torch.no_grad():
            z_end = ddim(ddim(z, t, middle), middle, end)
        target = (z_end - end / t * z) / ((1 - end) - end / t * (1 - t))
        x = z - t * student(z, torch.tensor([t], dtype=torch.float64), one.cond, one.layout)
        w = max(((1 - t) / t) ** 2, 1) if weight == "truncated-snr" else 1 / t**2
        lines.append(w * (target - x).square().mean())
    expected = torch.stack(lines).mean()
    assert float(total(ours)) == pytest.approx(float(expected), rel=1e-10)
    assert largest(gradients(ours, student), list(torch.autograd.grad(expected, list(student.parameters())))) < 1e-10


@pytest.mark.parametrize("rescale_t", [1.0, 3.0])
@pytest.mark.parametrize("kind", BATCHES)
def test_perflow_is_the_papers_loss(kind: str, rescale_t: float) -> None:
    """Within a window: || v(z_t, t) - (z_a - z_b) / (a - b) ||^2, z_b by an ODE solver from z_a, z_t in between."""
    config, (student, teacher, _, nets) = PeRFlowConfig(windows=2, solver_steps=3, rescale_t=rescale_t), trio()
    batch, shares = BATCHES[kind], [0.1, 0.5, 0.8]
    given = {"piece": torch.tensor([0.2, 0.7, 0.9]), "t": torch.tensor(shares, dtype=torch.float64)}
    ours = PeRFlow(config).loss(batch, nets, Given({**given, "noise": NOISE[kind]}))
    grid, lines = step_grid(2, rescale_t), []
    for i, window in enumerate([0, 1, 1]):
        one, eps = sample_of(batch, i), batch.layout.select(NOISE[kind], torch.tensor([i]))[0]
        a, b = grid[window], grid[window + 1]
        z_a = (1 - a) * one.x0 + a * eps
        z = z_a
        for k in range(3):
            at = torch.tensor([a + (b - a) * k / 3], dtype=torch.float64)
            z = z + (b - a) / 3 * teacher(z, at, one.cond, one.layout).detach()
        t = a + (b - a) * shares[i]
        z_t = z_a * (t - b) / (a - b) + z * (a - t) / (a - b)
        answer = student(z_t, torch.tensor([t], dtype=torch.float64), one.cond, one.layout)
        lines.append((answer - (z_a - z) / (a - b)).square().mean())
    expected = torch.stack(lines).mean()
    assert float(total(ours)) == pytest.approx(float(expected), rel=1e-10)
    assert largest(gradients(ours, student), list(torch.autograd.grad(expected, list(student.parameters())))) < 1e-10


@pytest.mark.parametrize(
    ("method", "config"),
    [(Progressive, ProgressiveConfig(iterations=10)), (PeRFlow, PeRFlowConfig())],
    ids=["progressive", "perflow"],
)
def test_conformance_without_pairs(method: type[Objective[Any]], config: Any) -> None:
    check_objective(method, config)


class Steps(Backbone):
    """One Euler-like step of a Gaussian from t down to s(t): the factor that ``shrink`` gives for ``fine`` steps."""

    def __init__(self, steps: int, fine: int) -> None:
        super().__init__()
        self.steps, self.fine = steps, fine
        self.shift = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        size, ratio = 1 / self.steps, self.fine // self.steps
        factor = torch.stack([shrink([t - size * i / ratio for i in range(ratio + 1)]) for t in t_B.tolist()])
        return (1 - factor)[:, None] * (x - (1 - t_B[:, None]) * mean()) / size - mean() + self.shift


@pytest.mark.parametrize(("steps", "fine"), [(8, 16), (2, 16)])
def test_a_student_of_fewer_steps_that_ends_where_many_do_is_the_minimiser(steps: int, fine: int) -> None:
    """Stage by stage, n steps learn to go where 2 n of the stage before go: in the end where the teacher's 16 do."""
    batch = gaussian_batch(64)
    student, earlier = Steps(steps, fine), Steps(2 * steps, fine)
    nets = Nets({"student": student, "teacher": Teacher(AnalyticFlow(GAUSSIAN).double()), "earlier": earlier}, {})
    config = ProgressiveConfig(steps=(8, 4, 2), iterations=1)
    step = Given({**draws(batch.x0, 64), "piece": draws(batch.x0, 64)["t"]}, index=config.steps.index(steps))
    assert float(total(Progressive(config).loss(batch, nets, step)).detach()) < 1e-24
    student.shift.data += 0.1
    assert float(total(Progressive(config).loss(batch, nets, step)).detach()) > 1e-3


def test_a_window_of_a_gaussian_has_its_straight_flow_as_the_minimiser() -> None:
    """From x_a to x_b both deviate from their means by one factor; between them x_t's deviation is its line's."""

    class Straight(Backbone):
        def forward(
            self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None
        ) -> Tensor:
            rows = []
            for x_i, t in zip(x, t_B.tolist(), strict=True):
                a = 1.0 if t > 0.5 else 0.5
                k = shrink([a - 0.1 * i for i in range(6)])
                along = (a - t) / 0.5
                rows.append((1 - k) / 0.5 * (x_i - (1 - t) * mean()) / (1 - along + along * k) - mean())
            return torch.stack(rows)

    batch, config = gaussian_batch(64), PeRFlowConfig(windows=2, solver_steps=5)
    step = Given({**draws(batch.x0, 64), "piece": draws(batch.x0, 64, seed=4)["t"]})
    loss = PeRFlow(config).loss(batch, exact_nets(Straight()), step)
    assert float(total(loss)) < 1e-24


def test_stages_of_progressive_distillation() -> None:
    method = Progressive(ProgressiveConfig(steps=(4, 2, 1), iterations=5))
    assert [method.stage(i) for i in (0, 4, 5, 9, 10, 99)] == [0, 0, 1, 1, 2, 2]
    assert [i for i in range(30) if method.phase(i).copies] == [5, 10]
    assert method.phase(5).copies == (("earlier", "student"),)
    method.check(TrainConfig(steps=11))
    with pytest.raises(FewstepError, match=r"train\.steps: got 10; accepted: more than the 10"):
        method.check(TrainConfig(steps=10))
    for steps in ((4, 1), (3, 1), (1, 2), (0,)):
        with pytest.raises(ValidationError, match="each half of the one before"):
            ProgressiveConfig(steps=steps)


def distilled(out: Path, steps: int, **more: Any) -> fewstep.Run:
    train = {"steps": steps, "batch_size": 4, "lr_schedule": "constant", "checkpoint_every": 1, "keep": 9}
    tables = {"backbone": {"width": 8, "pretrain": 3}, "data": {"size": 30, "held_out": 2}, "train": train}
    objective = {"steps": (2, 1), "iterations": 2}
    return fewstep.distill("progressive", "toy", out=out, config={**tables, "objective": objective}, **more)


def test_a_later_stage_learns_from_the_student_of_the_earlier_one_also_when_resumed(tmp_path: Path) -> None:
    unbroken = distilled(tmp_path / "a", 5)
    distilled(tmp_path / "b", 3)
    resumed = distilled(tmp_path / "b", 5, resume=True)
    first, second = (load_file(run.folder / "student" / "model.safetensors") for run in (unbroken, resumed))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    counts = unbroken.metrics()[-1]["evaluations"]
    assert counts["teacher"]["forward"] == 2 * 4 * 2  # iterations, samples, steps
    assert counts["earlier"] == {"forward": 3 * 4 * 2, "tangent": 0, "backward": 0}
    state = {n: load_file(tmp_path / "b" / f"checkpoints/step-0000000{n}/state.safetensors") for n in (1, 2, 3, 5)}
    names = [name for name in state[1] if name.startswith("net/earlier/")]
    assert any(not torch.equal(state[1][name], state[3][name]) for name in names)
    for name in names:
        assert torch.equal(state[1][name], state[2][name])
        assert torch.equal(state[2][name.replace("earlier", "student")], state[3][name])
        assert torch.equal(state[3][name], state[5][name])
    assert not any(name.startswith("optim/earlier/") for name in state[1])
    with pytest.raises(FewstepError, match=r"train\.steps: got 2"):
        distilled(tmp_path / "c", 2)


def test_contracts() -> None:
    kd, reflow = KnowledgeDistillation(KDConfig()).contract(), Reflow(ReflowConfig(rescale_t=2.0)).contract()
    assert (kd.sampler, kd.steps) == ("euler", (1,))
    assert (reflow.sampler, reflow.steps, reflow.rescale_t) == ("euler", (1, 2, 4), 2.0)
    progressive = Progressive(ProgressiveConfig(steps=(8, 4), rescale_t=3.0)).contract()
    assert (progressive.steps, progressive.rescale_t) == ((4,), 3.0)
    perflow = PeRFlow(PeRFlowConfig(windows=4, rescale_t=3.0)).contract()
    assert (perflow.sampler, perflow.steps, perflow.rescale_t) == ("euler", (4, 8), 3.0)
