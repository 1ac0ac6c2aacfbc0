"""Reading ahead: the same batches in the same order, while the iteration before is computed; a stall is shown."""

from __future__ import annotations

import io
import threading
from typing import Any

import engine_helpers
import pytest
import torch
from engine_helpers import OBJECTIVES, Regress, TinyData, trainer
from fewstep_trellis.official.dataset import OfficialDataset
from rich.console import Console
from torch import Tensor

from fewstep.core.batch import Batch
from fewstep.engine.progress import RunProgress
from fewstep.engine.trainer import Trainer
from fewstep.errors import FewstepError


class Ahead(TinyData):
    """Notes what it reads, in which thread."""

    reads_ahead = True
    damaged: list[int] | None = None

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.read = list[list[int]]()
        self.threads = set[str]()
        self.said = list[str]()

    def batch(self, indices: list[int], generator: torch.Generator) -> Batch:
        self.threads.add(threading.current_thread().name)
        if self.damaged == indices:
            raise FewstepError("a file is damaged")
        self.read.append(indices)
        self.said.append(f"read {len(self.read)}")
        return super().batch(indices, generator)

    def notes(self) -> list[str]:
        said, self.said = self.said, []
        return said


def run_of(monkeypatch: pytest.MonkeyPatch, objective: str = "tiny-regress", **keys: Any) -> tuple[Trainer, Any]:
    monkeypatch.setattr(engine_helpers, "TinyData", Ahead)
    run = trainer(objective, **{"accumulate": 2, "steps": 6, **keys})
    return run, run.dataset


def trained(run: Trainer) -> list[Any]:
    rows: list[Any] = []
    run.train(rows.append, lambda: None)
    return [{**row, "seconds": 0} for row in rows]


@pytest.mark.parametrize("objective", ["tiny-regress", "tiny-transport"])  # the second tries its derivatives first
def test_the_same_run(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = trainer(objective, accumulate=2, steps=6)
    ahead, data = run_of(monkeypatch, objective)
    assert trained(plain) == trained(ahead)
    for name, tensor in plain.nets.state().items():
        assert torch.equal(tensor, ahead.nets.state()[name]), name
    assert data.threads == {"reader_0"}
    tried = objective == "tiny-transport"
    assert len(data.read) == 12 + tried
    wanted = [plain.dataset.indices(step, 4, 0, micro, 2) for step in range(6) for micro in range(2)]
    assert [indices for number, indices in enumerate(data.read) if not (tried and number == 4)] == wanted


def test_a_resumed_run_begins_with_its_own_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, all_read = run_of(monkeypatch)
    trained(whole)
    rest, read = run_of(monkeypatch)
    rest.step = 4
    trained(rest)
    assert read.read == all_read.read[8:]


def test_the_next_iteration_is_read_while_one_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    arrived = [threading.Event() for _ in range(7)]

    class Waits(Regress):
        def loss(self, batch: Any, nets: Any, step: Any) -> dict[str, Tensor]:
            if step.index < 5:
                assert arrived[step.index + 1].wait(20), "nobody reads"
            return super().loss(batch, nets, step)

    monkeypatch.setitem(OBJECTIVES, "tiny-waits", Waits)
    run, data = run_of(monkeypatch, "tiny-waits", accumulate=1)
    notes = data.notes

    def finished() -> list[str]:
        arrived[len(data.read) - 1].set()
        return list(notes())

    monkeypatch.setattr(data, "notes", finished)
    trained(run)


def test_what_the_data_set_says_is_said_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    run, _ = run_of(monkeypatch, said=said)
    trained(run)
    assert said == [f"read {number}" for number in range(1, 13)]


def test_a_damaged_file_ends_the_iteration_that_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    run, data = run_of(monkeypatch)
    data.damaged = data.indices(3, 4, 0, 1, 2)
    rows: list[Any] = []
    with pytest.raises(FewstepError, match="a file is damaged"):
        run.train(rows.append, lambda: None)
    assert [row["step"] for row in rows] == [1, 2, 3]


def test_official_data_sets_are_read_ahead() -> None:
    assert OfficialDataset.reads_ahead


def test_a_stall_shows_in_the_progress_line(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, waited = 0.0, 0.0
    monkeypatch.setattr("fewstep.engine.progress.time.monotonic", lambda: clock)
    console = Console(file=io.StringIO(), width=120)
    with RunProgress(console, 400, every=0.0) as progress:
        for step in range(1, 401):
            clock += 2.0
            waited += 0.1 if step <= 200 else 0.5
            progress.update({"step": step, "loss": {"vm": 1.0}}, waited)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[199] == "step 200/400  vm 1  0.5 steps/s  6:40 left"
    assert lines[399].startswith("step 400/400  vm 1  0.5 steps/s  waits for data 25%")
