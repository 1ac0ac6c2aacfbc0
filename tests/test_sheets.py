"""Sample sheets: what they show, that they change nothing, and who is given them."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any, ClassVar

import engine_helpers
import numpy as np
import pytest
import torch
from engine_helpers import Tiny
from fewstep_trackers.services import TensorBoard, WandB
from PIL import Image
from rich.console import Console

import fewstep
from fewstep.core.batch import Batch
from fewstep.core.contract import Contract
from fewstep.core.suite import Unmeasured
from fewstep.engine import session
from fewstep.errors import FewstepError
from fewstep.files import sha256, write_bytes

KEYS = ("train.steps=5", "train.batch_size=4", "train.checkpoint_every=2", "train.log_every=1", "backbone.dropout=0.5")


class Plain(Unmeasured):
    """Samples as numbers, in a file called .png; draws from torch's own generator, as a careless decoder may."""

    suffixes = (".png",)

    def decode(self, x: Any, layout: Any) -> Any:
        torch.rand(3)
        return x

    def write(self, objects: Any, path: Path, prompts: Batch | None = None) -> list[Path]:
        write_bytes(path, objects.numpy().tobytes())
        return [path]


class Album:
    """A tracker that takes pictures."""

    seen: ClassVar[list[Any]] = []

    def __init__(self, folder: Path, config: Any, step: int) -> None: ...
    def log(self, row: Any) -> None:
        self.seen.append(row["step"])

    def picture(self, name: str, path: Path, step: int) -> None:
        self.seen.append((name, path.name, step))

    def flush(self) -> None: ...
    def close(self) -> None: ...


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    engine_helpers.install()
    monkeypatch.setattr(Tiny, "suite", classmethod(lambda cls, config, dataset: Plain(dataset)), raising=False)


def start(out: Path, *keys: str, resume: bool = False, trackers: tuple[str, ...] = ()) -> Path:
    resolved = engine_helpers.resolve("tiny-regress", "tiny", None, [*KEYS, *keys])
    return session.start(resolved, out, resume, Console(file=io.StringIO()), trackers=trackers)


def told(run: Path) -> list[Any]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{**row, "seconds": None} for row in rows]


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("keys", [(), ("train.ema=[0.5]", "train.export=0.5")])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_run_with_sheets_has_the_same_bits(
    tmp_path: Path, keys: tuple[str, ...], guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    contract = Contract(steps=(2,), guidance=guidance)
    monkeypatch.setattr(engine_helpers.Regress, "contract", lambda self: contract)
    plain, drawn = start(tmp_path / "plain", *keys), start(tmp_path / "drawn", *keys, "train.samples_every=2")
    assert told(plain) == told(drawn)
    assert sha256(plain / "student" / "model.safetensors") == sha256(drawn / "student" / "model.safetensors")
    assert not (plain / "samples").exists()
    names = [path.name for path in sorted((drawn / "samples").iterdir())]
    assert names == [f"step-{step:06}.png" for step in (0, 2, 4, 5)]
    assert len({sha256(path) for path in (drawn / "samples").iterdir()}) == 4


@pytest.mark.usefixtures("pictures")
def test_a_resumed_run_draws_the_same_sheets(tmp_path: Path) -> None:
    whole = start(tmp_path / "whole", "train.samples_every=2")
    start(tmp_path / "part", "train.steps=3")
    again = start(tmp_path / "part", "train.samples_every=2", resume=True)  # a key without influence may change
    for step in (4, 5):
        name = f"samples/step-{step:06}.png"
        assert (again / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.usefixtures("pictures")
def test_trackers_get_the_rows_before_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewstep_trackers.services.TensorBoard", Album)
    Album.seen.clear()
    start(tmp_path / "run", "train.samples_every=3", trackers=("tensorboard",))
    names = {step: ("samples", f"step-{step:06}.png", step) for step in (0, 3, 5)}
    assert Album.seen == [names[0], 1, 2, 3, names[3], 4, 5, names[5]]


def test_a_backbone_without_pictures_is_refused_before_the_folder_is_made(tmp_path: Path) -> None:
    engine_helpers.install()
    with pytest.raises(FewstepError, match=r"train.samples_every: got 2; accepted: 0, since backbone 'tiny' draws no "):
        start(tmp_path / "run", "train.samples_every=2")
    assert not (tmp_path / "run").exists()


def test_the_sheet_is_of_the_exported_student(tmp_path: Path) -> None:
    train = {"steps": 4, "samples_every": 4, "ema": [0.5], "export": 0.5}
    config = {"backbone": {"pretrain": 20, "width": 16}}
    run = fewstep.distill("mdt-vm", "toy", out=tmp_path / "run", config=config, train=train)
    student = fewstep.load(run, device="cpu")
    prompts = student.prompts(student.suite.sampled)
    (own,) = student.save(student.sample(prompts, seed=0), prompts, tmp_path / "own.png")
    sheets = [np.asarray(Image.open(run.folder / "samples" / f"step-{step:06}.png")) for step in (0, 4)]
    assert np.array_equal(sheets[1], np.asarray(Image.open(own)))
    assert not np.array_equal(*sheets)


def test_pictures_in_tensorboard_and_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGBA", (3, 2), "red").save(tmp_path / "a.png")
    seen: list[Any] = []
    board, cloud = TensorBoard.__new__(TensorBoard), WandB.__new__(WandB)
    monkeypatch.setattr(board, "writer", type("Writer", (), {"add_image": lambda *a, **k: seen.append((a, k))}), False)
    board.picture("samples", tmp_path / "a.png", 7)
    (name, pixels, step), keys = seen.pop()
    assert (name, pixels.shape, step, keys) == ("samples", (2, 3, 3), 7, {"dataformats": "HWC"})
    wandb = type("wandb", (), {"Image": str, "log": lambda row, step: seen.append((row, step))})
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(cloud, "run", wandb, False)
    cloud.picture("samples", tmp_path / "a.png", 7)
    assert seen == [({"samples": str(tmp_path / "a.png")}, 7)]
