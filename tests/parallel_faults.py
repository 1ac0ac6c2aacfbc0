"""What befalls one process of a run: it dies, freezes, hangs or fails as an iteration begins."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from fewstep.engine.store import Store
from fewstep.engine.trainer import Trainer
from fewstep.errors import FewstepError


def at(step: int, victim: int, act: Any, rank: int) -> None:
    """In the process of rank ``victim``, do something as iteration ``step`` (from 1) begins."""
    real = Trainer._iteration

    def iteration(self: Trainer, index: int) -> None:
        if rank == victim and index + 1 == step:
            self.processes.step = step
            act()
        real(self, index)

    Trainer._iteration = iteration  # type: ignore[method-assign]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def freeze() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def hang() -> None:
    signal.pause()


def fail() -> None:
    raise FewstepError("a file of the data set is damaged")


def written(out: Path, step: int) -> None:
    """Wait for a checkpoint."""
    while step not in Store(out / "checkpoints").steps():
        time.sleep(0.01)


def killed_after(step: int, out: Path, rank: int) -> None:
    """The second process dies in iteration 6, when the checkpoint of ``step`` is there; both wait for that."""

    def act() -> None:
        written(out, step)
        if rank == 1:
            die()

    at(6, rank, act, rank)
