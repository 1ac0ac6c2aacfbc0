"""Checkpoints of runs of several processes: written while training goes on, whole or not at all, by all or none."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from parallel_faults import at, freeze, killed_after
from parallel_helpers import apart, distilled, start, toy
from test_parallel import SHORT
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from fewstep.engine import store as stores
from fewstep.engine.store import Store
from fewstep.engine.trainer import Trainer

FSDP = "parallel.kind=fsdp"


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def held_back(step: int, rank: int) -> None:
    """Shards are written only when iteration ``step`` (from 1) has begun."""
    begun, iteration, save = threading.Event(), Trainer._iteration, stores.save_shards

    def begin(self: Trainer, index: int) -> None:
        if index + 1 == step:
            begun.set()
        iteration(self, index)

    def late(*args: Any) -> dict[str, str]:
        assert begun.wait(60)
        return save(*args)

    Trainer._iteration, stores.save_shards = begin, late  # type: ignore[method-assign]


def held_back_and_killed(out: Path, rank: int) -> None:
    """The checkpoint of step 3 is written from iteration 5 on."""
    held_back(5, rank)
    killed_after(3, out, rank)


def held_back_and_frozen(rank: int) -> None:
    """The second process freezes while shards wait to be written."""
    held_back(100, rank)
    at(5, 1, freeze, rank)


def slow_disk_and_stopped(rank: int) -> None:
    """The first process takes its time for a checkpoint; the second one is sent a signal."""
    write = Store._write

    def slow(self: Store, *args: Any) -> None:
        time.sleep(2 if rank == 0 else 0)
        write(self, *args)

    Store._write = slow  # type: ignore[method-assign]
    at(3, 1, stop, rank)


def full_disk(out: Path, rank: int) -> None:
    """The second process finds no room for its shards once a checkpoint is there."""
    write = FileSystemWriter.write_data

    def full(self: FileSystemWriter, *args: Any) -> Any:
        if rank == 1 and Store(out / "checkpoints").steps():
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, *args)

    FileSystemWriter.write_data = full  # type: ignore[method-assign]


def test_training_goes_on_while_shards_are_written(tmp_path: Path) -> None:
    """And what is written is the state of its own step."""
    out = tmp_path / "run"
    run = toy(2, out, "mdt-vd", SHORT, "train.checkpoint_every=3", FSDP, before=partial(held_back_and_killed, out))
    assert run.wait() == [2, -signal.SIGKILL]
    assert "step 6, rank 1: the process has died or is frozen. The checkpoint of step 3" in run.printed(0)
    assert start(1, tmp_path / "again", "distill", "--resume", "-o", str(out), "parallel.kind=auto").wait() == [0]
    assert distilled(1, tmp_path / "one", "mdt-vd", SHORT) == [0]
    assert apart(tmp_path / "one", out) < 1e-6


def test_a_process_that_freezes_while_shards_are_written_holds_up_nobody(tmp_path: Path) -> None:
    keys = (SHORT, "train.checkpoint_every=3", FSDP, "parallel.timeout=3")
    run = toy(2, tmp_path / "run", "mdt-vd", *keys, before=held_back_and_frozen)
    run.processes[0].join(40)
    assert run.processes[0].exitcode == 2
    run.wait(0)
    assert "step 5, rank 1: the process has died or is frozen. There is no checkpoint yet" in run.printed(0)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_signal_to_one_process_stops_all_after_a_checkpoint(tmp_path: Path, kind: str) -> None:
    """None of them ends before it is written: torchrun would stop the others."""
    run = toy(2, tmp_path / "run", "mdt-vd", SHORT, f"parallel.kind={kind}", before=slow_disk_and_stopped)
    run.processes[1].join(120)
    assert Store(tmp_path / "run" / "checkpoints").steps() == [3]
    assert run.wait() == [128 + signal.SIGTERM] * 2
    assert "interrupted; to go on" in run.printed(0)
    assert run.printed(1) == ""


def test_a_full_disk_ends_all_and_the_checkpoint_before_stays(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = toy(2, out, "mdt-vd", SHORT, "train.checkpoint_every=2", FSDP, before=partial(full_disk, out))
    assert run.wait() == [2, 2]
    text = "step-00000004: cannot be written: rank 1: No space left on device. The checkpoint of step 2"
    assert text in run.printed(0)
    assert "Traceback" not in run.printed(0) + run.printed(1)
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000002"]
    assert start(2, tmp_path / "again", "distill", "--resume", "--out", str(out)).wait() == [0, 0]
    assert distilled(1, tmp_path / "one", "mdt-vd", SHORT) == [0]
    assert apart(tmp_path / "one", out) < 1e-6


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = toy(2, out, "mdt-vd", SHORT, "train.checkpoint_every=2", FSDP, before=partial(killed_after, 4, out))
    assert run.wait() == [2, -signal.SIGKILL]
    newest = Store(out / "checkpoints").path(4)
    shard = next(newest.glob("shards/__1*"))
    shard.write_bytes(shard.read_bytes()[:-100])
    again = start(2, tmp_path / "again", "distill", "--resume", "--out", str(out))
    assert again.wait() == [2, 2]
    assert f"{shard}" in again.printed(0)
    assert "truncated or changed" in again.printed(0)
    assert f"delete {str(newest)!r} to resume from the older one of step 2" in again.printed(0)
