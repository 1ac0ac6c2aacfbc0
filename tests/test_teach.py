"""Flow matching and ``fewstep teach``: the loss, its minimiser in closed form, and teachers for every backbone."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from closed_forms import GAUSSIAN, RING, Given, draws, gaussian_batch, gradients, largest, random_student, total
from conftest import refusal
from fewstep_flow_matching.objective import FlowMatching, FlowMatchingConfig
from fewstep_toy.analytic import AnalyticFlow
from fewstep_toy.config import PointsConfig
from fewstep_toy.dataset import ToyPoints
from pydantic import Field
from torch import Tensor, nn

from fewstep.cli import main
from fewstep.config.base import Strict
from fewstep.core.backbone import Backbone
from fewstep.core.batch import Batch, Condition
from fewstep.core.dataset import Dataset
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense, Layout, Packed
from fewstep.core.objective import Nets
from fewstep.engine.export import load_student
from fewstep.engine.teachers import beginner, open_teacher
from fewstep.errors import FewstepError
from fewstep.plugins.hookspecs import ANY
from fewstep.plugins.registry import Entry, registry
from fewstep.plugins.shared import choose
from fewstep.testing import check_objective

ALWAYS = FlowMatching(FlowMatchingConfig(p_uncond=0))


def nets(student: nn.Module) -> Nets:
    return Nets({"student": student}, {})


# The loss.


@pytest.mark.parametrize("sigma_min", [0.0, 0.1])
@pytest.mark.parametrize("layout", ["dense", "packed"])
def test_loss_and_gradient_are_the_papers(layout: str, sigma_min: float) -> None:
    """Equation 23, |v((1 - (1 - s) t') eps + t' x1) - (x1 - (1 - s) eps)|^2, where t' = 1 - t runs from noise to data,
    x1 is the data and v points to them."""
    student = random_student(GAUSSIAN)
    batch = gaussian_batch(12)
    lengths = [1] * 12 if layout == "dense" else [5, 1, 4, 2]
    if layout == "packed":
        batch = Batch(batch.x0, Packed.of_lengths(lengths), batch.cond)
    given = draws(batch.x0, len(lengths))
    found = ALWAYS.loss(batch, nets(student), Given(given | {"drop": given["t"]}, interpolant=Interpolant(sigma_min)))

    t_B, s, x1, eps = given["t"], sigma_min, batch.x0, given["noise"]
    ours = torch.repeat_interleave(t_B, torch.tensor(lengths))[:, None]
    reversed_t = 1 - ours
    at = (1 - (1 - s) * reversed_t) * eps + reversed_t * x1
    towards_data = -student(at, ours[:, 0], Condition(), Dense(12))  # every point is on its own
    expected = {"flow": (towards_data - (x1 - (1 - s) * eps)).square()}
    assert largest(found["flow"], expected["flow"]) < 1e-12
    assert largest(gradients(found, student), gradients(expected, student)) < 1e-12


class Linear(Backbone):
    """a x + b, whatever the time."""

    def __init__(self, a: float, b: Tensor) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(a, dtype=b.dtype)), nn.Parameter(b.clone())

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        return self.a * x + self.b


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_minimiser_on_a_gaussian_is_its_velocity(t: float) -> None:
    """At one time the minimiser is linear, a x + b. Two points a direction with the right mean and variance give the
    exact mean of any square of such a function: at the exact velocity the gradient is 0, and the loss is the variance
    that x_t leaves, s^2 / ((1 - t)^2 s^2 + t^2)."""
    flow = AnalyticFlow(GAUSSIAN).double()
    mean, s = flow.mixture.means[0], flow.std
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4)), dtype=torch.float64)
    batch = Batch(mean + s * signs[:, :2], Dense(16))
    times = torch.full((16,), t, dtype=torch.float64)
    given = {"noise": signs[:, 2:], "t": times, "drop": times}

    zero, one = (
        flow(torch.full((1, 2), x, dtype=mean.dtype), given["t"][:1], Condition(), Dense(1))[0] for x in (0.0, 1.0)
    )
    exact = Linear(float((one - zero)[0]), zero)
    loss = ALWAYS.loss(batch, nets(exact), Given(given))
    assert max(float(g.abs().max()) for g in gradients(loss, exact)) < 1e-12
    assert float(total(loss).detach()) == pytest.approx(s**2 / ((1 - t) ** 2 * s**2 + t**2), rel=1e-12)
    wrong = Linear(float((one - zero)[0]) + 0.1, zero)
    assert max(float(g.abs().max()) for g in gradients(ALWAYS.loss(batch, nets(wrong), Given(given)), wrong)) > 0.01


def test_conditions_are_dropped_as_often_as_told() -> None:
    student, points = random_student(RING), ToyPoints(PointsConfig(size=4096), AnalyticFlow(RING))
    batch = points.batch(list(range(4096)), torch.Generator()).cast(torch.float64)
    given = draws(batch.x0, 4096) | {"drop": torch.rand(4096, generator=torch.Generator().manual_seed(1))}
    blank = Batch(batch.x0, batch.layout, Condition())

    def losses(p: float, of: Batch = batch) -> Tensor:
        return FlowMatching(FlowMatchingConfig(p_uncond=p)).loss(of, nets(student), Given(given))["flow"]

    assert torch.equal(losses(1.0), losses(0.0, blank))
    changed = (losses(0.25) != losses(0.0)).any(1).double().mean()
    assert float(changed) == pytest.approx(0.25, abs=0.03)


def test_it_passes_the_kit() -> None:
    check_objective(FlowMatching)


# ``fewstep teach`` on backbones of our own.

TINY = ("backbone.width=16", "backbone.depth=1")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def works(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code = main(arguments)
    out, err = capsys.readouterr()
    assert code == 0, out + err
    return " ".join(out.split())


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code = main(arguments)
    return refusal(code, *capsys.readouterr())


def weights(run: str) -> list[Tensor]:
    return list(load_student(Path(run))[0].state_dict().values())


def test_digits_from_random_weights_to_one_step(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr("fewstep_images.fitting._train", None)  # nothing is fitted beforehand

    keys = ("train.steps=60", "train.batch_size=64", "objective.p_uncond=0.1", "objective.t.kind=logit-normal")
    said = works(capsys, "teach", "--backbone", "images", *TINY, *keys, "--out", "t")
    assert "teacher: t next: fewstep distill --method NAME --backbone images backbone.teacher=t" in said
    rows = [json.loads(line) for line in Path("t/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["total"] < 0.7 * rows[0]["total"]
    assert rows[-1]["evaluations"]["teacher"] == {"forward": 0, "tangent": 0, "backward": 0}

    again = ("--backbone", "images", "backbone.teacher=t", "train.batch_size=8")
    works(capsys, "distill", "--method", "cm", *again, "train.steps=1", "train.lr=1e-12", "--out", "s")
    assert largest(weights("s"), weights("t")) < 1e-9, "the student starts as the teacher"
    works(capsys, "distill", "--method", "cm", *again, "train.steps=2", "--out", "s2")
    assert "4 samples, 1 step" in works(capsys, "sample", "s2", "--steps", "1", "--count", "4", "--out", "digits.png")
    assert Path("digits.png").stat().st_size > 0


def test_the_teacher_is_guided_as_the_config_says(capsys: pytest.CaptureFixture[str]) -> None:
    small = ("backbone.conditional=true", "data.size=64", "train.batch_size=8", "train.steps=2", *TINY)
    works(capsys, "teach", "--backbone", "toy", *small, "--out", "t")
    toy = registry().get("backbone", "toy")
    teacher = open_teacher(toy, toy.load_config()(teacher="t", guidance=3.0))
    assert teacher.guidance.scale == 3.0
    assert not any(p.requires_grad for p in teacher.parameters())
    for found, kept in zip(teacher.backbone.state_dict().values(), weights("t"), strict=True):
        assert torch.equal(found, kept)


def test_a_run_goes_on_bit_for_bit_and_begins_as_its_seed_says(capsys: pytest.CaptureFixture[str]) -> None:
    small = ("--backbone", "toy", "data.size=64", "train.batch_size=8", "train.lr_schedule=constant", *TINY)
    works(capsys, "teach", *small, "train.steps=4", "--out", "whole")
    works(capsys, "teach", *small, "train.steps=2", "--out", "part")
    works(capsys, "teach", "--backbone", "toy", "--resume", "--out", "part", "train.steps=4")
    assert largest(weights("part"), weights("whole")) == 0
    toy = registry().get("backbone", "toy")
    a, b, other = (
        next(beginner(toy, toy.load_config()(width=16, pretrain=0), seed).backbone.parameters()) for seed in (0, 0, 1)
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, other)


def test_what_is_no_teacher_is_refused_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    small = ("--backbone", "toy", "data.size=64", "train.batch_size=8", "train.steps=1", *TINY)
    works(capsys, "teach", *small, "--out", "t")
    words = ("distill", "--method", "mdt-vm", "--out", "s")
    assert "this one is of 'toy'" in refused(capsys, *words, "--backbone", "images", "backbone.teacher=t")
    assert "did you mean 'learned'?" in refused(capsys, *words, "--backbone", "toy", "backbone.teacher=lerned")
    Path("t/student").rename("gone")
    message = refused(capsys, *words, "--backbone", "toy", "backbone.teacher=t")
    assert message.startswith("backbone.teacher: student 't': this run has not finished")
    assert not Path("s").exists()
    assert "unknown backbone 'tyo'" in refused(capsys, "teach", "--backbone", "tyo")


def test_the_run_of_the_teacher_decides_what_its_network_was_made_from(capsys: pytest.CaptureFixture[str]) -> None:
    small = ("data.size=64", "train.batch_size=8", "train.steps=1")
    works(capsys, "teach", "--backbone", "toy", *small, *TINY, "backbone.target=moons", "--out", "t")
    words = ("--backbone", "toy", "backbone.teacher=t", *small)
    works(capsys, "distill", "--method", "cm", *words, "--out", "s")
    recorded = json.loads(Path("s/config.json").read_text())
    assert (recorded["config"]["backbone"]["width"], recorded["config"]["backbone"]["target"]) == (16, "moons")
    assert recorded["sources"]["backbone.width"] == "the teacher's run"
    assert recorded["config"]["backbone"] == json.loads(Path("s/student/config.json").read_text())["config"]["backbone"]
    asked = ("distill", "--method", "cm", *words, "--out", "other")
    wanted = "backbone.width: got 64; accepted: 16, as in the run of backbone.teacher"
    assert refused(capsys, *asked, "backbone.width=64").startswith(wanted)
    Path("wide.toml").write_text("[backbone]\nwidth = 64\n")
    assert refused(capsys, *asked, "--config", "wide.toml").startswith(wanted)
    assert refused(capsys, "bench", *words[:3], "--student", "s", "backbone.width=64").startswith(wanted)
    works(capsys, "distill", "--method", "cm", *words, "backbone.width=16", "backbone.guidance=2", "--out", "same")
    keys = ("backbone.width=16", "backbone.depth=2", "backbone.pretrain=2")
    works(capsys, "distill", "--method", "cm", *small, "--backbone", "toy", *keys, "--out", "plain")
    works(capsys, *asked, "--config", "plain")  # an earlier run gives way
    assert json.loads(Path("other/config.json").read_text())["config"]["backbone"]["depth"] == 1
    works(capsys, "distill", "--resume", "--out", "s")


# A backbone of another package: a network, a config and data, no pretrained weights.


class BareConfig(Strict):
    width: int = Field(4, ge=1, description="hidden units")
    guidance: float = Field(1.0, description="guidance scale")


class Bare(Backbone):
    """Velocity of points [B, 2]."""

    Config = BareConfig
    provides: ClassVar[frozenset[str]] = frozenset({"dense", "jvp"})
    dataset = "bare"

    def __init__(self, config: BareConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.Sequential(nn.Linear(3, config.width), nn.Tanh(), nn.Linear(config.width, 2))

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        found: Tensor = self.layers(torch.cat([x, t_B.to(x.dtype)[:, None]], 1))
        return found


class BareData(Dataset):
    """Points around (2, 2)."""

    Config = Strict

    def __len__(self) -> int:
        return 64

    def batch(self, indices: list[int], generator: torch.Generator) -> Batch:
        return Batch(2 + torch.randn(len(indices), 2, generator=generator), Dense(len(indices)))


@pytest.fixture
def bare() -> Entry:
    """The backbone, as its package would register it."""
    for kind, cls in (("backbone", Bare), ("dataset", BareData)):
        registry().add(Entry(kind, "bare", "bare", f"{__name__}:{cls.__name__}", distribution="fewstep-bare"))
    return registry().get("backbone", "bare")


def test_a_backbone_of_another_package_is_taught_for_free(bare: Entry, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--backbone", "bare", "train.batch_size=8", "train.steps=3")
    assert "backbone.teacher" in works(capsys, "teach", "--backbone", "bare", "--help-config")
    works(capsys, "teach", *words, "backbone.width=5", "--out", "t")
    distil = ("distill", "--method", "mdt-vm", *words, "--out", "s")
    assert "Bare has no teacher of its own; accepted: a run of `fewstep teach`" in refused(capsys, *distil)
    wrote = "no such folder; accepted: a folder that `fewstep distill` or `fewstep teach` wrote"
    assert wrote in refused(capsys, *distil, "backbone.teacher=nowhere")
    works(capsys, *distil, "backbone.teacher=t")
    assert [t.shape for t in weights("s")] == [t.shape for t in weights("t")]
    assert open_teacher(bare, bare.load_config()(teacher="t", guidance=2.0)).guidance.scale == 2.0
    works(capsys, "sample", "s", "--out", "s.npz")


def test_who_teaches() -> None:
    assert choose("teach").name == choose("teach", "trellis").name == "trellis"
    assert choose("teach", "toy").name == ANY
    registry().add(Entry("one command", ANY, "plugin", "nowhere:x", distribution="other"))
    assert choose("one").name == ANY
    with pytest.raises(FewstepError, match="does not offer `fewstep generate`; accepted: trellis"):
        choose("generate", "toy")
