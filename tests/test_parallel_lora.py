"""Adapters whose networks are sharded: each network has its own shards of what one process shares among all."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path

from parallel_faults import killed_after
from parallel_helpers import apart, distilled, start, toy
from safetensors.torch import load_file
from torch.distributed.checkpoint.filesystem import FileSystemReader

from fewstep.engine.adapters import PEFT

FSDP = "parallel.kind=fsdp"
TEACHER = ("backbone.teacher=learned", "backbone.pretrain=20", "train.steps=6")
LORA = (*TEACHER, "lora.rank=2", "train.lr=0.01")


def test_two_processes_train_the_adapters_that_one_trains(tmp_path: Path) -> None:
    """The run that is broken off goes on as one process, from shards that hold the adapters alone."""
    keys, one, two = (*LORA, "train.checkpoint_every=3", "train.export=0.9"), tmp_path / "one", tmp_path / "two"
    assert distilled(1, one, "dmd2", *keys) == [0]
    run = toy(2, two, "dmd2", *keys, FSDP, before=partial(killed_after, 3, two))
    assert run.wait() == [2, -signal.SIGKILL]
    saved = FileSystemReader(next((two / "checkpoints").glob("*/shards"))).read_metadata().state_dict_metadata
    assert all(".lora." in key for key in saved if not key.endswith("/clip"))
    assert start(1, tmp_path / "again", "distill", "--resume", "-o", str(two), "parallel.kind=auto").wait() == [0]
    assert apart(one, two) < 1e-6
    adapters = [load_file(run / "student" / PEFT[0]) for run in (one, two)]
    assert adapters[0].keys() == adapters[1].keys()


def test_adapters_beside_another_students_weights(tmp_path: Path) -> None:
    """By two processes, from their export on; resumed by two."""
    assert distilled(2, tmp_path / "first", "mdt-vd", *TEACHER, FSDP) == [0, 0]
    keys, one, two = (*LORA, f"train.start={tmp_path / 'first'}"), tmp_path / "one", tmp_path / "two"
    assert distilled(1, one, "mdt-vd", *keys) == [0]
    run = toy(2, two, "mdt-vd", *keys, FSDP, "train.checkpoint_every=4", before=partial(killed_after, 4, two))
    assert run.wait() == [2, -signal.SIGKILL]
    assert start(2, tmp_path / "again", "distill", "--resume", "-o", str(two)).wait() == [0, 0]
    assert apart(one, two) < 1e-6
