"""Methods added up by name, ``--method cm+pcm``: config, presets, weights, starts and phases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fewstep
from fewstep.cli import main
from fewstep.config.base import Strict
from fewstep.config.recorded import Words
from fewstep.config.resolve import resolve_run
from fewstep.core.backbone import Teacher
from fewstep.core.batch import Batch
from fewstep.core.objective import Nets, NetSpec, Objective, Phase, Step
from fewstep.engine.networks import Networks
from fewstep.errors import FewstepError
from fewstep.plugins.registry import Entry, registry
from fewstep.testing import check_objective
from fewstep.testing.tiny import TinyBackbone, tiny_batch


def resolved(method: str, *overrides: str, preset: str | None = None, backbone: str = "toy") -> Any:
    (found,) = resolve_run(Words(method, backbone, preset=preset), overrides).values()
    return found


def made(method: str, *overrides: str) -> Objective[Any]:
    found = resolved(method, *overrides)
    objective: Objective[Any] = found.method.load()(found.config.objective)
    return objective


def terms(objective: Objective[Any], index: int = 0) -> dict[str, Tensor]:
    teacher = Teacher(TinyBackbone().double())
    nets = Networks(objective.networks(), teacher, torch.device("cpu"))
    for module in nets.trained.values():
        for p in module.parameters():
            p.data = p.data.double() + 0.1
    return objective.loss(tiny_batch(), nets.view, Step(index, TinyBackbone().interpolant, total=10))


def test_each_part_has_its_own_table_and_presets() -> None:
    found = resolved("mdt-vm+cm", "objective.cm.interval=0.07", "objective.weights.cm=0.5")
    assert found.method.name == "mdt-vm+cm"
    objective = found.config.objective
    assert (getattr(objective, "mdt-vm").target_ema, objective.cm.interval) == (0.9, 0.07)
    assert getattr(objective, "mdt-vm").d_norm == "none"  # as its average, of the toy's preset for mdt-vm
    assert found.sources["objective.mdt-vm.d_norm"] == "preset default (fewstep_toy)"
    assert (objective.weights.cm, getattr(objective.weights, "mdt-vm")) == (0.5, 1.0)


def test_the_first_part_wins_outside_of_the_parts_tables() -> None:
    both = ("mdt-vd", "mdt-vm")  # on the nano TRELLIS: 810 and 1000 iterations
    steps = [resolved("+".join(names), backbone="trellis").config.train.steps for names in (both, both[::-1])]
    assert steps == [resolved(name, backbone="trellis").config.train.steps for name in both]
    assert steps[0] != steps[1]


def test_a_preset_of_one_part_leaves_the_other_its_default() -> None:
    found = resolved("mdt-vm+cm", preset="paper")
    paper, alone = resolved("mdt-vm", preset="paper").config.objective, resolved("cm").config.objective
    assert (getattr(found.config.objective, "mdt-vm"), found.config.objective.cm) == (paper, alone)


def test_aliases_are_resolved() -> None:
    assert resolved("mdt+cm").method.name == "mdt-vd+cm"


def test_weights_and_starts() -> None:
    alone = {name: terms(made(name)) for name in ("cm", "pcm")}
    found = terms(made("cm+pcm", "objective.weights.pcm=0.25"))
    assert found.keys() == {"cm/cm", "pcm/pcm"}
    assert torch.equal(found["cm/cm"], alone["cm"]["cm"])
    assert torch.equal(found["pcm/pcm"], 0.25 * alone["pcm"]["pcm"])
    late = made("cm+pcm", "objective.starts.pcm=0.5")  # of 10 iterations
    assert [set(terms(late, index)) for index in (4, 5)] == [{"cm/cm"}, {"cm/cm", "pcm/pcm"}]
    counted = made("cm+pcm", "objective.starts.pcm=3")
    assert [len(terms(counted, index)) for index in (2, 3)] == [1, 2]


def test_a_sum_passes_the_conformance_kit() -> None:
    found = resolved("mdt-vm+pcm")
    check_objective(found.method.load(), found.config.objective)


class Alternating(Objective[Strict]):
    """A student and a network beside it, trained in turns, as a critic is."""

    Config = Strict

    def networks(self) -> dict[str, NetSpec]:
        return {"student": NetSpec(), "critic": NetSpec()}

    def phase(self, step: int) -> Phase:
        return Phase(("critic",), "fit") if step % 2 else Phase()

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        return {"own": nets.student(batch.x0, torch.zeros(batch.layout.batch_size), batch.cond, batch.layout)}

    def fit(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        return {"fit": nets.critic(batch.x0, torch.zeros(batch.layout.batch_size), batch.cond, batch.layout)}


def test_an_iteration_trains_what_any_part_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Entry("objective", "turns", "test", f"{__name__}:Alternating")
    monkeypatch.setitem(registry()._entries, ("objective", "turns"), [entry])
    objective = made("cm+turns")
    assert [objective.phase(index).trains for index in (0, 1)] == [("student",), ("student", "critic")]
    assert set(objective.networks()) == {"student", "critic"}
    assert [set(terms(objective, index)) for index in (0, 1)] == [{"cm/cm", "turns/own"}, {"cm/cm", "turns/fit"}]


@pytest.mark.parametrize(
    ("method", "overrides", "message"),
    [
        ("cm+cm", (), "a method is named twice"),
        ("cm+pmc", (), "unknown method 'pmc'.*did you mean 'pcm'"),
        ("cm+", (), "unknown method ''"),
        ("cm+pcm", ("objective.pmc.interval=0.1",), "unknown key 'objective.pmc'.*did you mean 'objective.pcm'"),
        ("cm+pcm", ("objective.weights.cm=-1",), "objective.weights.cm"),
        ("cm+pcm", ("objective.weights.cm=0", "objective.starts.pcm=0.5"), "no method with a weight above 0 begins"),
    ],
)
def test_refusals(method: str, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(FewstepError, match=message):
        made(method, *overrides)


def test_an_unknown_preset_names_those_of_the_parts() -> None:
    with pytest.raises(FewstepError, match=r"unknown preset 'papr': accepted are .*paper.*did you mean 'paper'"):
        resolved("cm+mdt-vm", preset="papr")


def test_from_the_command_line_and_on_again(tmp_path: Path) -> None:
    run = ["distill", "--method", "cm+pcm", "--backbone", "toy", "--out", str(tmp_path / "a")]
    small = ["train.batch_size=8", "backbone.pretrain=1", "train.lr_schedule=constant"]
    assert main([*run, *small, "train.steps=2"]) == 0
    assert main(["distill", "--resume", "--out", str(tmp_path / "a"), "train.steps=4"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 4
    assert rows[-1]["loss"].keys() == {"cm/cm", "pcm/pcm"}
    assert fewstep.load(tmp_path / "a").info.method == "cm+pcm"
