"""The cost of an iteration: counts against what a method does, memory against tensors of known size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.quality import steps
from fewstep.engine.trainer import Trainer

KEYS = {
    "backbone": {"teacher": "learned", "pretrain": 0, "width": 32},
    "data": {"size": 256, "held_out": 8},
    "train": {"batch_size": 16, "threads": 1, "device": "cpu"},
}


def test_the_peak_is_that_of_the_tensors_that_live_at_once(tmp_path: Path) -> None:
    before = torch.empty(2**20, dtype=torch.uint8)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        first = torch.empty(3 * 2**20, dtype=torch.uint8)
        del before, first
        second = torch.empty(2 * 2**20, dtype=torch.uint8)
        third = torch.empty(4 * 2**20, dtype=torch.uint8)
        del second, third
        torch.empty(5 * 2**20, dtype=torch.uint8)
    watched.export_chrome_trace(str(tmp_path / "trace.json"))
    assert steps.peak_of(json.loads((tmp_path / "trace.json").read_text())["traceEvents"]) == 6 * 2**20


@pytest.mark.parametrize(
    ("method", "counts"),
    [
        ("flow-matching", (1, 0, 1)),
        ("cm", (3, 0, 1)),  # the student at two times, the teacher
        ("kd", (1, 0, 1)),
        (
            "dmd2",
            (1 + 1 + 2 / 5, 0, 1 + 1 / 5),
        ),  # student and critic; in one of five both compared, and the student moved
    ],
)
def test_evaluations_are_those_of_the_method(method: str, counts: tuple[float, float, float]) -> None:
    _, found = steps.timed(steps.plan(method, "toy", KEYS))
    assert found == pytest.approx(dict(zip(("forward", "tangent", "backward"), counts, strict=True)))


def test_memory_counts_weights_and_optimiser_states() -> None:
    """Of a network so wide that a batch's activations are small: the weights of teacher and student, a gradient, two
    moments, and during the update two more tensors of one layer at a time, which is half of this network."""
    resolved = steps.plan("flow-matching", "toy", {**KEYS, "backbone": {**KEYS["backbone"], "width": 512}})
    trainer: Trainer = steps.prepared(resolved)
    size = sum(p.nbytes for p in trainer.nets.parameters["student"].values())
    assert 5.9 < steps.peak_memory(resolved) / size < 6.1


def test_a_command_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [f"{table}.{key}={value}" for table, values in KEYS.items() for key, value in values.items()]
    command = ["steps", "--backbone", "toy", "--rounds", "1", "--out", str(tmp_path / "out"), *keys]
    monkeypatch.setattr("sys.argv", [*command, "--methods", "cm,pcm", "--seconds", "0"])
    steps.main()
    assert "stopped before cm" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*command, "--methods", "flow-matching,cm"])
    steps.main()
    first = steps.read(tmp_path / "out" / "steps.csv")
    assert [(one.method, one.evaluations) for one in first] == [("flow-matching", 3.0), ("cm", 5.0)]
    assert first[0].x_memory == 1
    assert first[1].x_evaluations == pytest.approx(5 / 3)
    monkeypatch.setattr("sys.argv", [*command, "--methods", "kd"])
    steps.main()
    assert steps.read(tmp_path / "out" / "steps.csv")[:2] == first
    assert (tmp_path / "out" / "table.md").read_text().count("\n") == 5
