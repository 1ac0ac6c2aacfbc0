"""The guidance strength as an input: formulas, a closed form, students as files, and how they are sampled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from closed_forms import RING, Given, draws, gradients, largest, random_student, total
from fewstep_consistency.config import LCMConfig
from fewstep_consistency.lcm import LatentConsistency
from fewstep_flowmaps.config import AdaptiveConfig
from fewstep_flowmaps.meanflow import ImprovedMeanFlow
from fewstep_toy.analytic import AnalyticFlow, GaussianMap
from fewstep_toy.config import ToyConfig
from fewstep_toy.network import ToyFlow
from torch import Tensor, nn

import fewstep
from fewstep.benchmark.entrants import Model
from fewstep.benchmark.sampling import sample
from fewstep.cli import main
from fewstep.config.base import validate
from fewstep.config.resolve import check_needs
from fewstep.core.backbone import Backbone, Teacher
from fewstep.core.batch import Batch, Condition
from fewstep.core.contract import Contract
from fewstep.core.guidance import Guidance
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense, Layout, Packed
from fewstep.core.objective import Nets, Step
from fewstep.core.strength import StrengthEmbedder
from fewstep.errors import FewstepError
from fewstep.testing import check_objective

INPUT = frozenset({"guidance_input"})
LENGTHS = [3, 1, 4, 1, 2]
RANGE = {"low": 1.0, "high": 5.0}


def told_student(seed: int = 0) -> ToyFlow:
    """A student with all weights random, those of the guidance strength included, in float64."""
    student = random_student(RING, seed)
    student.take_strength()
    torch.manual_seed(seed)
    nn.init.normal_(student.strength_embedder.mlp[2].weight, std=0.3)
    return student


def ring(kind: str) -> tuple[Batch, dict[str, Tensor], Nets, ToyFlow]:
    """Five samples of points on the ring with their classes, their draws, and a student beside the exact teacher."""
    layout: Layout = Dense(5) if kind == "dense" else Packed.of_lengths(LENGTHS)
    generator = torch.Generator().manual_seed(3)
    x0 = torch.randn(5 if kind == "dense" else sum(LENGTHS), 2, generator=generator, dtype=torch.float64)
    cond, student = Condition(torch.eye(8, dtype=torch.float64)[:5]), told_student()
    nets = Nets({"student": student, "teacher": Teacher(AnalyticFlow(RING).double())}, {})
    given = {**draws(x0, 5, seed=4), "guidance/main": torch.tensor([0.25])}
    return Batch(x0, layout, cond), given, nets, student


def each(batch: Batch, given: dict[str, Tensor]) -> list[tuple[Tensor, Tensor, float, Tensor]]:
    """Data, noise, the drawn time and the class of each sample, by itself."""
    lengths = [1] * 5 if isinstance(batch.layout, Dense) else LENGTHS
    assert batch.cond.tokens is not None
    parts = batch.x0.split(lengths), given["noise"].split(lengths), given["t"].tolist(), batch.cond.tokens.split(1)
    return list(zip(*parts, strict=True))


def ask(net: nn.Module, x: Tensor, t: float, tokens: Tensor, w: float | None = None, s: float | None = None) -> Tensor:
    """The network's answer at points [P, 2] of one class, all at time t, told the strength w and the target time s."""
    many = torch.full((len(x),), t, dtype=torch.float64)
    strength = None if w is None else torch.full_like(many, w)
    cond = Condition(tokens.expand(len(x), -1), strength=strength)
    found: Tensor = net(x, many, cond, Dense(len(x)), s_B=None if s is None else torch.full_like(many, s))
    return found


def guided(x: Tensor, t: float, tokens: Tensor, w: float) -> Tensor:
    """(1 + w) v(x, class) - w v(x) of the exact ring."""
    exact = AnalyticFlow(RING).double()
    return (1 + w) * ask(exact, x, t, tokens) - w * ask(exact, x, t, torch.zeros_like(tokens))


@pytest.mark.parametrize("kind", ["dense", "ragged"])
@pytest.mark.parametrize("strengths", [RANGE, [3.0, 3.0]])
def test_lcm_is_its_formula_with_the_strength_as_an_input(kind: str, strengths: Any) -> None:
    """|| f(x_t, t, w) - sg f(x_t - D v_w, t - D, w) ||^2 with the same w on both sides and in the guidance."""
    batch, given, nets, student = ring(kind)
    w, d, terms = 2.0 if strengths == RANGE else 3.0, 0.1, []
    config = {"target": "student", "loss": "l2", "weight": "none", "interval": d, "t": {"kind": "uniform"}}
    objective = LatentConsistency(validate(LCMConfig, {**config, "guidance": strengths}))
    ours = objective.loss(batch, nets, Given(given))
    for x0, noise, u, tokens in each(batch, given):
        t = d + (1 - d) * u
        x_t = (1 - t) * x0 + t * noise
        before = x_t - d * guided(x_t, t, tokens, w)
        jumped = x_t - t * ask(student, x_t, t, tokens, w)
        with torch.no_grad():
            target = before - (t - d) * ask(student, before, t - d, tokens, w)
        terms.append((jumped - target).square().mean())
    theirs = torch.stack(terms).mean()
    assert total(ours).item() == pytest.approx(theirs.item(), rel=1e-9)
    found = gradients(ours, student)
    assert largest(found, gradients({"written": theirs}, student)) < 1e-9
    names = [name for name, _ in student.named_parameters()]
    embedder = [g for name, g in zip(names, found, strict=True) if name.startswith("strength_embedder")]
    assert len(embedder) == 3
    assert all(float(g.abs().max()) > 1e-6 for g in embedder)


@pytest.mark.parametrize("kind", ["dense", "ragged"])
def test_imeanflow_is_its_formula_with_the_strength_as_an_input(kind: str) -> None:
    """|| F + (t - s) sg(dF/dt) - v_w ||^2 over (its mean + c), dF/dt along (F(x_t, t, t, w), 1, 0)."""
    batch, given, nets, student = ring(kind)
    given |= {"s": 0.5 * given["t"], "apart": torch.zeros(5), "to_data": torch.ones(5), "from_noise": torch.ones(5)}
    values = {"guidance": RANGE, "draw": "ends", "constant": 0.01, "reduction": "sample"}
    objective = ImprovedMeanFlow(validate(AdaptiveConfig, values))
    ours, w, h, terms = objective.loss(batch, nets, Given(given)), 2.0, 1e-5, []
    for x0, noise, t, tokens in each(batch, given):
        s, x_t = 0.5 * t, (1 - t) * x0 + t * noise
        own = ask(student, x_t, t, tokens, w, t).detach()
        ahead, behind = (ask(student, x_t + k * own, t + k, tokens, w, s) for k in (h, -h))
        slope = ((ahead - behind) / (2 * h)).detach()
        error = ask(student, x_t, t, tokens, w, s) + (t - s) * slope - guided(x_t, t, tokens, w)
        weight = (error.detach().square().mean() + 0.01) ** -objective.config.power
        terms.append(weight * error.square().mean())
    theirs = torch.stack(terms).mean()
    assert total(ours).item() == pytest.approx(theirs.item(), rel=1e-6)
    assert largest(gradients(ours, student), gradients({"written": theirs}, student)) < 1e-5


class GaussianOfStrength(Backbone):
    """Of the Gaussian with mean m under the class and 0 without, guided by w: that with mean (1 + w) m. Its exact
    average velocity to the data, where ``average``, or its velocity."""

    provides: ClassVar[frozenset[str]] = frozenset({"dense", "jvp", "guidance_input"})

    def __init__(self, average: bool, off: float = 0.0) -> None:
        super().__init__()
        self.map, self.average = GaussianMap(ToyConfig(target="gaussian")).double(), average
        self.off = nn.Parameter(torch.tensor(off, dtype=torch.float64))

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        assert cond.tokens is not None
        w_B = 0.0 if cond.strength is None or not self.average else cond.strength.double() + self.off
        mean, t = layout.expand((1 + w_B) * cond.tokens[:, 0], x) * self.map.mean, layout.expand(t_B, x)
        moved: Tensor = self.map(
            x - (1 - t) * (mean - self.map.mean), t_B, cond, layout, s_B=None if self.average else t_B
        )
        return moved - (mean - self.map.mean)


@pytest.mark.parametrize("off", [0.0, 0.3])
def test_the_exact_students_of_all_strengths_are_lcms_answer(off: float) -> None:
    """The jumps agree but for the Euler step's error, of order D^2, if each strength has the map of its own density; a
    student that takes the strength for another one misses by a first-order step."""
    batch = Batch(torch.randn(64, 2, dtype=torch.float64), Dense(64), Condition(torch.ones(64, 1, dtype=torch.float64)))
    nets = Nets({"student": GaussianOfStrength(True, off), "teacher": Teacher(GaussianOfStrength(False))}, {})
    given, missed = draws(batch.x0, 64, seed=1) | {"guidance/main": torch.tensor([0.6])}, []
    for interval in (0.02, 0.01):
        values = {"interval": interval, "target": "student", "guidance": RANGE, "loss": "l2", "weight": "none"}
        objective = LatentConsistency(validate(LCMConfig, values | {"t": {"kind": "uniform"}}))
        missed.append(total(objective.loss(batch, nets, Given(given))).item() ** 0.5)
    order = missed[0] / missed[1]
    assert 3.5 < order < 4.5 if off == 0 else 1.5 < order < 2.5


def test_one_strength_is_baked_in_and_several_are_an_input() -> None:
    for guidance in (None, 3.0, [3.0], {"start": 0.0, "end": 3.0}):
        objective = LatentConsistency(validate(LCMConfig, {"guidance": guidance}))
        assert "guidance_input" not in objective.needs
        assert objective.contract().strength is None
    several = {"range": (RANGE, 3.0, (1.0, 5.0)), "list": ([4.0, 2.0, 6.0], 4.0, (2.0, 6.0))}
    for guidance, default, bounds in several.values():
        for cls, of in ((LatentConsistency, LCMConfig), (ImprovedMeanFlow, AdaptiveConfig)):
            objective = cls(validate(of, {"guidance": guidance}))
            contract = objective.contract()
            assert "guidance_input" in objective.needs
            assert (contract.strength, contract.strengths) == (default, bounds)
            check_objective(cls, objective.config)
    without = type("Without", (Backbone,), {"provides": frozenset({"dense"})})
    with pytest.raises(FewstepError, match="needs 'guidance_input', 'two_time', which backbone 'Without'"):
        check_needs(objective, without, method="imeanflow")


def test_a_range_is_drawn_from_evenly_and_the_same_twice() -> None:
    look = LatentConsistency(validate(LCMConfig, {"guidance": RANGE})).look(Step(0, Interpolant()))
    found = torch.tensor([look.strength(Step(i, Interpolant())) for i in range(400)])
    assert 1 <= float(found.min()) < 1.1 < 4.9 < float(found.max()) <= 5
    assert float(found.mean()) == pytest.approx(3.0, abs=0.2)
    step = Step(7, Interpolant())
    assert look.guidance(step) == Guidance.strength(float(found[7]))
    assert look.strength(step) == look.strength(step)


def test_the_embedding_tells_strengths_apart_smoothly() -> None:
    torch.manual_seed(0)
    embedder = StrengthEmbedder(16).double()
    w_B = torch.tensor([0.0, 0.1, 1.0, 14.0, 100.0], dtype=torch.float64)
    assert not bool(embedder(w_B).any())
    nn.init.normal_(embedder.mlp[2].weight)
    far = torch.cdist(embedder(w_B), embedder(w_B)).detach()
    assert float(far[0, 1]) < float(far[0, 2])
    assert float((far + 10 * torch.eye(5)).min()) > 0.01


QUICK = ("train.steps=3", "train.batch_size=8", "backbone.pretrain=20", "backbone.conditional=true", "data.held_out=64")


def test_from_a_range_to_samples_and_a_bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = ("objective.guidance.low=1", "objective.guidance.high=5", "train.lr=0.01", *QUICK)
    assert main(["distill", "-m", "lcm", "-b", "toy", "--out", "run", *keys]) == 0
    contract = json.loads(Path("run/student/config.json").read_text())["contract"]
    assert (contract["strength"], contract["strengths"]) == (3.0, [1.0, 5.0])
    assert json.loads(Path("run/student/model.json").read_text())["guidance_input"] is True

    student = fewstep.load("run")
    prompts = student.prompts(16)
    default, same, more = (student.sample(prompts, guidance=w) for w in (None, 3.0, 5.0))
    assert torch.equal(default, same)
    assert largest(default, more) > 1e-4
    with pytest.warns(UserWarning, match="made for guidance 1 to 5, got 8"):
        student.sample(prompts, guidance=8.0)

    noise = Step(index=0, interpolant=Interpolant(), seed=0).randn_like(prompts.x0, "noise")
    stored = Contract(**contract)
    for told in (stored, stored.with_strength(5.0)):
        x, _, _ = sample(Model(student.network, student.network, told), prompts, noise, 1, 0, torch.device("cpu"))
        assert torch.equal(x, default if told is stored else more)

    assert main(["sample", "run", "--guidance", "5", "--out", "a.png"]) == 0
    assert main(["sample", "run", "--guidance", "-1", "--out", "b.png"]) == 2
    assert "--guidance: got -1.0; accepted: a strength w from 0 on" in capsys.readouterr().err
    assert main(["distill", "-m", "lcm", "-b", "toy", "--out", "plain", *QUICK]) == 0
    assert main(["sample", "plain", "--guidance", "5", "--out", "b.png"]) == 2
    assert "this student takes no guidance strength, it is baked in" in capsys.readouterr().err
