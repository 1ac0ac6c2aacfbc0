"""Heartbeats of a run's processes: they tell which process is missing, and why one ended."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from itertools import count

import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from fewstep.errors import FewstepError, first_line
from fewstep.interrupts import Interrupted

BEAT = 0.5  # seconds between two heartbeats
SILENCE = 3.0  # seconds without one after which a process counts as dead
_numbers = count()  # numbers the groups of this process


class Lost(FewstepError):
    """Another process of the run has ended, or does not answer."""


class Liveness:
    """What the processes of a group tell each other through torch's store: a heartbeat every ``BEAT`` seconds, the
    reason why a process ended, and which ones wait in vain.

    Args:
        rank, ranks: which process this is, of how many.
        timeout: seconds after which the collectives of an iteration give up, for the message.
    """

    def __init__(self, rank: int, ranks: int, timeout: float) -> None:
        self.rank, self.ranks, self.timeout = rank, ranks, timeout
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        name = f"fewstep/{attempt}/{next(_numbers)}"
        self.notes = PrefixStore(name, TCPStore(*place, is_master=False))
        beats = PrefixStore(name, TCPStore(*place, is_master=False))  # a connection for the thread alone
        self._over = threading.Event()
        self._beating = threading.Thread(target=self._beat, args=(beats,), daemon=True)
        self._beating.start()

    def _beat(self, beats: Store) -> None:
        number = 0
        with suppress(RuntimeError):  # the store is gone
            while not self._over.wait(BEAT):
                beats.set(f"beat/{self.rank}", str(number := number + 1))

    def close(self) -> None:
        """Stop the heartbeats. A thread that still used the store when Python exits would abort the process."""
        self._over.set()
        self._beating.join(SILENCE)

    def ended(self, step: int, error: BaseException) -> None:
        """Tell the others why this process ends."""
        self._leave(f"{place_of(step, self.rank)}: {_told(error)}")

    def missing(self, step: int) -> Lost:
        """The error that says which process is missing, after a connection broke or a collective timed out."""
        try:
            self.notes.set(f"misses/{self.rank}", "")
            before, deadline = self._beats(), time.monotonic() + SILENCE
            while not self.notes.check(["reason"]) and time.monotonic() < deadline:
                time.sleep(BEAT / 5)
            others = [rank for rank in range(self.ranks) if rank != self.rank]
            after = self._beats()
            dead = [rank for rank in others if before[rank] == after[rank]]
            late = [rank for rank in others if not self.notes.check([f"misses/{rank}"])]
            text = f"{place_of(step, *dead)}: the process has died or is frozen"
            if not dead:
                text = f"{place_of(step, *late)}: no answer for {self.timeout:g} seconds (see parallel.timeout)"
            lost = Lost(self._leave(text))
            lost.orphaned = 0 in dead or (0 in late and not dead)
        except RuntimeError:  # the store went with the process that held it
            lost = Lost(f"{place_of(step, 0)}: the process has died")
            lost.orphaned = True
        return lost

    def _leave(self, reason: str) -> str:
        """Store the reason unless there is one already; returns the first that was stored."""
        with suppress(RuntimeError):
            return self.notes.compare_set("reason", "", reason).decode()
        return reason

    def _beats(self) -> list[bytes]:
        keys = [f"beat/{rank}" for rank in range(self.ranks)]
        return [self.notes.get(key) if self.notes.check([key]) else b"" for key in keys]


def disconnected(error: Exception) -> bool:
    """Whether this is what a collective raises when another process is gone or late."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def place_of(step: int, *ranks: int) -> str:
    """Processes and their iteration (from 1; 0 before the first) in words."""
    names = ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))
    return f"step {step}, {names}" if step else names


def _told(error: BaseException) -> str:
    if isinstance(error, FewstepError):
        return str(error)
    if isinstance(error, Interrupted):
        return f"interrupted by signal {error.number}"
    return f"{type(error).__name__}: {first_line(error)}"
