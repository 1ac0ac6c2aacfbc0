"""A rung of the ladder: every method under every seed at one budget, then one bench; what is done is not done again."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from benchmarks.quality import rung
from benchmarks.quality.budget import evaluations, iterations
from benchmarks.quality.search_plan import Plan, drawn
from fewstep.api.distillation import Run
from fewstep.config.base import read_toml

SMALL = rung.Rung(
    "toy",
    {"backbone": {"width": 8, "pretrain": 0}},
    {"batch_size": 4},
    measured={"limit": 20, "teacher_steps": 2},
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rung of seconds."""
    monkeypatch.setitem(rung.RUNGS, "ring", SMALL)
    rung.steps_of.cache_clear()


def command(monkeypatch: pytest.MonkeyPatch, out: Path, *words: str) -> None:
    shared = ["--steps", "1", "--jobs", "1", "--resamples", "2"]
    monkeypatch.setattr(sys, "argv", ["rung", "ring", "--out", str(out), *shared, *words])
    rung.main()


@pytest.mark.usefixtures("small")
def test_every_method_gets_the_same_evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searched = []
    monkeypatch.setattr(rung, "iterations", lambda *args: searched.append(args) or iterations(*args))
    keys = ("--methods", "cm", "mdt-vd", "--seeds", "0", "1", "--evaluations", "1200")
    command(monkeypatch, tmp_path, *keys)
    for name in ("cm-0", "cm-1", "mdt-vd-0", "mdt-vd-1"):
        assert evaluations(Run(tmp_path / name)) == pytest.approx(1200, rel=0.05), name
    assert len(searched) == 2, "once a method"
    with (tmp_path / "bench" / "rows.csv").open() as file:
        rows = [(row["label"], row["training"]) for row in csv.DictReader(file) if row["metric"] == "sliced_w2"]
    assert {("cm", "0"), ("cm", "1"), ("mdt-vd", "0"), ("mdt-vd", "1")} <= set(rows)
    assert (tmp_path / "bench" / "report.html").exists()

    trained = (tmp_path / "cm-0" / "metrics.jsonl").stat().st_mtime_ns
    command(monkeypatch, tmp_path, *keys)
    assert (tmp_path / "cm-0" / "metrics.jsonl").stat().st_mtime_ns == trained


@pytest.mark.usefixtures("small")
def test_budgets_are_multiples_of_the_iterations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rung.RUNGS, "ring", rung.Rung("toy", SMALL.keys, {"steps": 8}, SMALL.measured))
    command(monkeypatch, tmp_path, "--methods", "cm", "--seeds", "0", "--budgets", "0.5", "1")
    assert Run(tmp_path / "cm@0.5x-0").metrics()[-1]["step"] == 4
    assert Run(tmp_path / "cm-0").metrics()[-1]["step"] == 8


@pytest.mark.usefixtures("small")
def test_a_training_that_fails_is_named_once_the_others_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(rung.RUNGS, "ring", rung.Rung("toy", SMALL.keys, {"steps": 2}, SMALL.measured))
    (tmp_path / "mdt-vd-0").mkdir()
    (tmp_path / "mdt-vd-0" / "notes.txt").write_text("in the way")
    with pytest.raises(SystemExit, match=r"error: .*mdt-vd-0: .*exists"):
        command(monkeypatch, tmp_path, "--methods", "mdt-vd", "cm", "--seeds", "0")
    assert Run(tmp_path / "cm-0").metrics()[-1]["step"] == 2
    assert not (tmp_path / "bench").exists()


@pytest.mark.usefixtures("small")
def test_a_wrong_name_is_told_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="unknown method 'mdt-vf'"):
        command(monkeypatch, tmp_path, "--methods", "cm", "mdt-vf")
    assert not (tmp_path / "cm-0").exists()


@pytest.mark.parametrize("chosen", rung.RUNGS.values(), ids=rung.RUNGS)
def test_the_family_is_what_was_searched(chosen: rung.Rung) -> None:
    plan = Plan.model_validate(read_toml(rung.PLANS / f"{chosen.searched}.toml"))
    family = set(read_toml(rung.PLANS / "checkerboard.toml")["space"])
    assert set(plan.space) == family
    assert plan.backbone == chosen.backbone
    for method in plan.space:
        drawn(plan, method)  # every key and value is one that the method takes
