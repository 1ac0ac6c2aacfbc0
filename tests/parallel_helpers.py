"""Several processes on this machine, as torchrun starts them: the same variables, and a store that outlives them all.

A server that has imported everything forks one process a rank, so that a run of several costs little more than one.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["parallel_helpers", "engine_helpers", "fewstep.api.distillation", "torch._dynamo"])
TOY = (
    "train.device=cpu",
    "train.threads=1",
    "train.steps=20",
    "train.batch_size=4",
    "train.accumulate=4",
    "train.checkpoint_every=100",
    "train.clip=adaptive",
    "train.clip_buffer=8",
    "train.ema=[0.9]",
    "backbone.pretrain=0",
    "backbone.width=8",
    "backbone.conditional=true",
    "data.size=64",
)


@dataclass
class Ranks:
    """The processes of one run. ``folder`` holds what each printed."""

    processes: list[BaseProcess]
    folder: Path
    store: dist.TCPStore

    def wait(self, seconds: float = 120) -> list[int | None]:
        """The exit codes; None for a process that has not ended in time, which is killed."""
        until = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
            process.join()
        return codes

    def printed(self, rank: int) -> str:
        return (self.folder / f"rank{rank}.txt").read_text()


def start(ranks: int, folder: Path, *words: str, before: Callable[[int], None] | None = None) -> Ranks:
    """``fewstep WORDS`` on each of the ranks; ``before`` is called with the rank in each process first."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    folder.mkdir(parents=True, exist_ok=True)
    started = []
    for rank in range(ranks):
        process = CONTEXT.Process(target=_run, args=(rank, ranks, store.port, str(folder), words, before))
        process.start()
        started.append(process)
    return Ranks(started, folder, store)


def _run(
    rank: int, ranks: int, port: int, folder: str, words: Sequence[str], before: Callable[[int], None] | None
) -> None:
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "True"}
    place |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks} if ranks > 1 else {}
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)
    with open(f"{folder}/rank{rank}.txt", "w") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        import engine_helpers

        from fewstep.cli import main

        engine_helpers.install()
        if before is not None:
            before(rank)
        code = main(list(words))
    sys.exit(code)


def toy(ranks: int, out: Path, method: str, *keys: str, before: Callable[[int], None] | None = None) -> Ranks:
    """A run of the toy on so many ranks."""
    words = ("distill", "-m", method, "-b", "toy", "-o", str(out), *TOY, *keys)
    return start(ranks, out.parent / f"{out.name}-printed", *words, before=before)


def distilled(ranks: int, out: Path, method: str, *keys: str) -> list[int | None]:
    """The exit codes of a run of the toy on so many ranks."""
    return toy(ranks, out, method, *keys).wait()


def weights(out: Path) -> dict[str, Tensor]:
    """Of the exported student."""
    return load_file(out / "student" / "model.safetensors")


def apart(a: Path, b: Path) -> float:
    """The largest difference between the weights of two runs."""
    one, other = weights(a), weights(b)
    assert one.keys() == other.keys()
    return max(float((one[key] - other[key]).abs().max()) for key in one)


def rows(out: Path) -> list[dict[str, Any]]:
    """Of ``metrics.jsonl``."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
