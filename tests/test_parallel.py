"""Runs of several processes: the same numbers as one process, resumed by any number of them, and ended in order."""

from __future__ import annotations

import signal
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from parallel_faults import killed_after
from parallel_helpers import apart, distilled, rows, start, toy
from torch import Tensor

from fewstep.config.parallel import ParallelConfig
from fewstep.core.backbone import Backbone, Teacher
from fewstep.core.guidance import Guidance
from fewstep.core.objective import Phase
from fewstep.engine.gradients import Gradients
from fewstep.engine.processes import Group, Processes, joined
from fewstep.engine.step import TrainStep
from fewstep.errors import FewstepError

SHORT = "train.steps=6"
DRAWN = ("objective.steps=2", "objective.guidance=[0.0,2.0]")  # draws decide how often networks are evaluated


def spoil(step: int, victim: int, rank: int) -> None:
    """In the process of rank ``victim`` the loss of iteration ``step`` is no number."""
    real = Gradients.terms

    def terms(self: Gradients, phase: Phase, batch: Any, place: TrainStep) -> dict[str, Tensor]:
        bad = torch.nan if rank == victim and place.place[0] + 1 == step else 1.0
        return {name: term * bad for name, term in real(self, phase, batch, place).items()}

    Gradients.terms = terms  # type: ignore[assignment, method-assign]


@pytest.mark.parametrize(
    ("method", "kind", "keys"),
    [
        ("mdt-vd", "ddp", ("data.layout=packed",)),
        ("meanflow", "fsdp", ()),
        ("dmd2", "fsdp", ("data.layout=packed", "objective.gan=0.01", "objective.critic_ratio=2", *DRAWN)),
    ],
)
def test_two_processes_train_what_one_trains(tmp_path: Path, method: str, kind: str, keys: tuple[str, ...]) -> None:
    assert distilled(1, tmp_path / "one", method, SHORT, *keys) == [0]
    assert distilled(2, tmp_path / "two", method, SHORT, *keys, f"parallel.kind={kind}") == [0, 0]
    assert apart(tmp_path / "one", tmp_path / "two") < 1e-6
    one, two = (rows(tmp_path / run)[-1] for run in ("one", "two"))
    assert one["evaluations"] == two["evaluations"]
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
    assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-5)


def guided_late(rank: int) -> None:
    """The teacher is guided on the last tenth of the times, which one process draws and another does not."""
    Backbone.as_teacher = lambda self, config: Teacher(self, Guidance(3.0, (0.9, 1.0)))  # type: ignore[method-assign]


def test_processes_evaluate_a_sharded_teacher_equally_often(tmp_path: Path) -> None:
    for ranks, kind in ((1, "none"), (2, "fsdp")):
        run = toy(ranks, tmp_path / kind, "mdt-vd", SHORT, f"parallel.kind={kind}", before=guided_late)
        assert run.wait(60) == [0] * ranks
    assert apart(tmp_path / "none", tmp_path / "fsdp") < 1e-6


@pytest.mark.parametrize(("kind", "others"), [("fsdp", 1), ("ddp", 2)])
def test_a_process_that_dies_is_named_and_the_run_goes_on(tmp_path: Path, kind: str, others: int) -> None:
    keys = (SHORT, "train.checkpoint_every=3", f"parallel.kind={kind}")
    run = toy(2, tmp_path / "run", "mdt-vd", *keys, before=partial(killed_after, 3, tmp_path / "run"))
    assert run.wait() == [2, -signal.SIGKILL]
    assert "error: step 6, rank 1: the process has died or is frozen. The checkpoint of step 3" in run.printed(0)
    assert "Traceback" not in run.printed(0)

    words = ("distill", "--resume", "--out", str(tmp_path / "run"), "parallel.kind=auto")
    again = start(others, tmp_path / "again", *words)
    assert again.wait() == [0] * others
    assert distilled(1, tmp_path / "one", "mdt-vd", SHORT) == [0]
    assert apart(tmp_path / "one", tmp_path / "run") < 1e-6


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_number_that_is_none_names_its_process(tmp_path: Path, kind: str) -> None:
    run = toy(2, tmp_path / "run", "mdt-vd", SHORT, f"parallel.kind={kind}", before=partial(spoil, 5, 1))
    assert run.wait() == [2, 2]
    assert "error: step 5, rank 1: loss term 'vm' is nan" in run.printed(0)
    assert run.printed(1) == ""


def test_every_micro_batch_is_one_process_s() -> None:
    group = [Processes() for _ in range(4)]
    for rank, one in enumerate(group):
        one.rank, one.ranks = rank, 4
    assert sorted(micro for one in group for micro in one.share(8)) == list(range(8))
    with pytest.raises(FewstepError, match=r"train.accumulate: got 6; accepted: a multiple of 4"):
        group[0].share(6)


def test_one_process_is_not_sharded() -> None:
    with pytest.raises(FewstepError, match=r"parallel.kind: got 'fsdp'"), joined(ParallelConfig(kind="fsdp"), "cpu"):
        pass


def test_signs_of_life_end_with_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that talks to the store while Python ends aborts the process, after a run that succeeded."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        before = set(threading.enumerate())
        group = Group(20.0)
        (beating,) = set(threading.enumerate()) - before
        group.liveness.close()
        assert not beating.is_alive()
    finally:
        dist.destroy_process_group()
