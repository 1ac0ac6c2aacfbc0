"""Everything that a checkpoint holds beside weights comes back from its file."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import engine_helpers
import pytest
import torch
from engine_helpers import trainer
from rich.console import Console
from safetensors.torch import save_file

from fewstep.engine import session
from fewstep.engine.resume import restore, scalars_of, tensors_of
from fewstep.engine.store import Store
from fewstep.errors import FewstepError


def test_every_number_of_a_run_comes_back(tmp_path: Path) -> None:
    keys = {"steps": 3, "ema": (0.5,), "clip": "adaptive", "clip_buffer": 2}
    run, again = (trainer("tiny-transport", "tiny-fused", **keys) for _ in range(2))
    run.train(lambda _: None, lambda: None)
    run.skipped["student"], run.reads_total = 3, True
    store = Store(tmp_path)
    store.save(run.step, tensors_of(run), {}, scalars_of(run))
    found = store.newest()
    assert found is not None
    assert restore(again, found) == []
    assert again.step == 3
    assert again.derivatives.wanted.mode == "finite-difference"  # found out once: the network has no forward mode
    assert again.derivatives.wanted.reason == run.derivatives.wanted.reason
    assert {**scalars_of(again), "derivatives": None} == {**scalars_of(run), "derivatives": None}
    assert again.optimizers["student"].clipper.norms == run.optimizers["student"].clipper.norms
    assert len(again.optimizers["student"].clipper.norms) == 2
    averages = (one.nets.view.ema("student", 0.5).parameters() for one in (run, again))
    assert all(torch.equal(a, b) for a, b in zip(*averages, strict=True))
    expected, got = tensors_of(run), tensors_of(again)
    assert expected.keys() == got.keys()
    assert all(torch.equal(got[key], value) for key, value in expected.items())


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """What it takes for a checkpoint of this test to be written."""
    go = threading.Event()

    def save(tensors: dict[str, torch.Tensor], path: Path) -> None:
        assert go.wait(20), "training waits for the file"
        save_file(tensors, path)

    monkeypatch.setattr("fewstep.engine.store.save_file", save)
    return go


def tiny(out: Path, steps: int, every: int, callback: Any = lambda row: None) -> Path:
    engine_helpers.install()
    keys = [f"train.steps={steps}", f"train.checkpoint_every={every}", "train.log_every=1", "train.device=cpu"]
    keys += ["train.ema=[0.5]", "train.clip=adaptive", "train.clip_buffer=2", "train.keep=9"]
    resolved = engine_helpers.resolve("tiny-transport", "tiny", layers=keys)
    return session.start(resolved, out, False, Console(file=io.StringIO()), callbacks=[callback])


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, held: threading.Event) -> None:
    written = Store(tiny(tmp_path / "long", 7, 3, lambda row: held.set() if row["step"] == 5 else None) / "checkpoints")
    assert written.steps() == [3, 6, 7]
    short = Store(tiny(tmp_path / "short", 3, 3) / "checkpoints").newest()
    for later in (7, 6):
        (written.path(later) / "state.json").unlink()
        (written.path(later) / "state.safetensors").unlink()
        written.path(later).rmdir()
    early = written.newest()
    assert early is not None
    assert short is not None
    assert early.tensors.keys() == short.tensors.keys()
    assert all(torch.equal(early.tensors[key], value) for key, value in short.tensors.items())
    assert {**early.scalars, "seconds": 0} == {**short.scalars, "seconds": 0}


def test_what_the_writer_meets_ends_the_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed, steps = threading.Event(), list[int]()

    def save(tensors: dict[str, torch.Tensor], path: Path) -> None:
        failed.set()
        raise OSError(28, "No space left on device")

    def look(row: Any) -> None:
        steps.append(row["step"])
        if row["step"] > 2:
            assert failed.wait(20)

    monkeypatch.setattr("fewstep.engine.store.save_file", save)
    with pytest.raises(FewstepError, match=r"step-00000002: cannot be written: No space.*no checkpoint yet"):
        tiny(tmp_path / "run", 10_000, 2, look)
    assert max(steps) <= 4


def test_the_last_checkpoint_is_there_when_a_run_is_interrupted(tmp_path: Path, held: threading.Event) -> None:
    def stop(row: Any) -> None:
        if row["step"] == 4:
            threading.Timer(0.2, held.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny(tmp_path / "run", 9, 3, stop)
    assert Store(tmp_path / "run/checkpoints").steps() == [3]
