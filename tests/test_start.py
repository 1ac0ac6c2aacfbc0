"""``train.start``: a run that goes on with another run's student."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import fewstep
from fewstep.engine.export import load_student
from fewstep.errors import FewstepError

TRAIN = {"steps": 2, "batch_size": 8, "threads": 1, "lr_schedule": "constant"}
BACKBONE = {"pretrain": 1, "width": 8}


def run(out: Path, method: str = "cm", backbone: str = "toy", **train: Any) -> fewstep.Run:
    return fewstep.distill(method, backbone, config={"backbone": BACKBONE, "train": {**TRAIN, **train}}, out=out)


def weights(folder: Path) -> torch.Tensor:
    return torch.cat([p.flatten() for p in load_student(folder)[0].parameters()])


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return run(tmp_path / "first", lr=0.1).folder


def test_the_student_and_its_averages_begin_there(tmp_path: Path, first: Path) -> None:
    still: dict[str, Any] = {"lr": 1e-12, "steps": 1}
    assert not torch.allclose(weights(run(tmp_path / "teacher", **still).folder), weights(first), atol=1e-3)
    exports: dict[str, dict[str, Any]] = {"student": {}, "average": {"ema": [0.9], "export": 0.9}}
    for name, more in exports.items():
        found = run(tmp_path / name, "mdt-vm", start=first, **still, **more)
        assert torch.allclose(weights(found.folder), weights(first), atol=1e-6), name


def test_what_it_cost_is_counted(tmp_path: Path, first: Path) -> None:
    def spent(folder: Path) -> dict[str, dict[str, int]]:
        counts: dict[str, dict[str, int]] = load_student(folder)[1].budget
        return counts

    second, alone = run(tmp_path / "second", start=first).folder, run(tmp_path / "alone").folder
    for name, kinds in spent(second).items():
        assert kinds == {kind: spent(first)[name][kind] + spent(alone)[name][kind] for kind in kinds}


def test_a_resumed_run_does_not_begin_again(tmp_path: Path, first: Path) -> None:
    whole = run(tmp_path / "whole", start=first, steps=4).folder
    run(tmp_path / "cut", start=first, checkpoint_every=1)
    first.rename(tmp_path / "moved")  # nothing is read from it any more
    cut = fewstep.distill(out=tmp_path / "cut", resume=True, train={"steps": 4}).folder
    assert torch.equal(weights(cut), weights(whole))
    counts = [json.loads((one / "metrics.jsonl").read_text().splitlines()[-1])["evaluations"] for one in (cut, whole)]
    assert counts[0] == counts[1]


def test_refusals(tmp_path: Path, first: Path) -> None:
    with pytest.raises(FewstepError, match=r"train\.start: student 'nowhere': no such folder"):
        run(tmp_path / "a", start="nowhere")
    with pytest.raises(FewstepError, match=r"train\.start: got .*first.*a student of 'images'; this one is of 'toy'"):
        fewstep.distill("cm", "images", config={"train": {"start": str(first)}}, out=tmp_path / "b")
    with pytest.raises(FewstepError, match=r"train\.start: \d+ tensors do not fit .*: first\.bias: got"):
        fewstep.distill("cm", "toy", config={"train": {"start": str(first), "steps": 1}}, out=tmp_path / "c")
    assert not [name for name in "abc" if (tmp_path / name).exists()]
