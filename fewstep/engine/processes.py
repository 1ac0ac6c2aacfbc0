"""The processes of a run under torchrun: what they tell each other, and which of them is missing when one is.

``Processes`` is a run of one process, whose methods do next to nothing; ``Group`` is a run of several.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from fewstep.config.parallel import ParallelConfig
from fewstep.engine.budget import Counts
from fewstep.errors import FewstepError, first_line, invalid
from fewstep.interrupts import Interrupted

BEAT = 0.5  # seconds between two signs of life
SILENCE = 3.0  # seconds without one after which a process counts as dead
PATIENCE = timedelta(hours=2)  # for what one process does alone: preparing data, writing a checkpoint
START = timedelta(minutes=10)  # until all processes are there
_numbers = count()  # of the groups of this process


class Lost(FewstepError):
    """Another process of the run has ended, or does not answer."""


class Processes:
    """One process.

    Attributes:
        rank, ranks: which process this is, of how many.
        step: the iteration it works on, from 1; 0 before the first. For messages.
        patient: torch's group for slow work; None for one process.
    """

    rank, ranks = 0, 1
    patient: dist.ProcessGroup | None = None

    def __init__(self) -> None:
        self.step = 0

    def share(self, micro_batches: int) -> range:
        """Which micro-batches of an iteration are this process's."""
        if micro_batches % self.ranks:
            raise invalid(
                "train.accumulate",
                micro_batches,
                f"a multiple of {self.ranks}: the micro-batches of an iteration, train.batch_size samples each, are "
                f"divided among {self.ranks} processes",
            )
        return range(self.rank, micro_batches, self.ranks)

    def summed(self, values: list[int]) -> list[int]:
        """The sums of host numbers over all processes."""
        return values

    def gathered(self, values: Tensor) -> Tensor:
        """[ranks, N] the device numbers [N] of all processes."""
        return values[None]

    def agreed(self, stop: Interrupted | None) -> Interrupted | None:
        """The signal that any process was sent; all stop after the same iteration."""
        return stop

    def wait(self) -> None:
        """Until all processes are here."""

    def told(self, text: str) -> str:
        """What the first process says."""
        return text

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The block is run by the first process, and then by all others."""
        yield

    @contextmanager
    def watched(self) -> Iterator[None]:
        """In place of what a broken connection raises in the block, a ``Lost`` that says which process is missing."""
        yield

    def total(self, counts: Counts) -> Counts:
        """Evaluations of all processes."""
        values = iter(self.summed([n for kinds in counts.values() for n in kinds.values()]))
        return {name: {kind: next(values) for kind in kinds} for name, kinds in counts.items()}


class Group(Processes):
    """Several processes.

    Beside torch's own group there are two of gloo, for numbers of the host: one for the meetings of an iteration, where
    nobody is late by more than ``timeout`` seconds, and one to wait for slow work. A store holds what is left for
    others to read: signs of life, the reason why a process ended, and which ones wait in vain.
    """

    def __init__(self, timeout: float) -> None:
        super().__init__()
        self.rank, self.ranks, self.timeout = dist.get_rank(), dist.get_world_size(), timeout
        self.quick = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        self.patient = dist.new_group(backend="gloo", timeout=PATIENCE)
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
        """No more signs of life. A thread that still talks to the store when Python ends would abort the process."""
        self._over.set()
        self._beating.join(SILENCE)

    def summed(self, values: list[int]) -> list[int]:
        numbers = torch.tensor(values)
        dist.all_reduce(numbers, group=self.quick)
        found: list[int] = numbers.tolist()
        return found

    def gathered(self, values: Tensor) -> Tensor:
        found = [torch.empty_like(values) for _ in range(self.ranks)]
        dist.all_gather(found, values)
        return torch.stack(found)

    def agreed(self, stop: Interrupted | None) -> Interrupted | None:
        number = torch.tensor(stop.number if stop else 0)
        dist.all_reduce(number, dist.ReduceOp.MAX, group=self.quick)
        return Interrupted(int(number)) if number else None

    def wait(self) -> None:
        dist.barrier(self.patient)

    def told(self, text: str) -> str:
        texts = [text]
        dist.broadcast_object_list(texts, group=self.patient)
        return texts[0]

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        if self.rank:
            self.wait()
        yield
        if not self.rank:
            self.wait()
        self.wait()

    @contextmanager
    def watched(self) -> Iterator[None]:
        try:
            yield
        except Lost:
            raise
        except BaseException as error:
            if not isinstance(error, Exception) or not _disconnected(error):
                self._leave(f"{self._place(self.rank)}: {_told(error)}")
                raise
            self._miss()

    def _place(self, *ranks: int) -> str:
        names = ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))
        return f"step {self.step}, {names}" if self.step else names

    def _leave(self, reason: str) -> str:
        """Leave a reason for the others; the first one that was left stands."""
        with suppress(RuntimeError):
            return self.notes.compare_set("reason", "", reason).decode()
        return reason

    def _miss(self) -> NoReturn:
        """Raise ``Lost``: a connection broke, or nothing came in time."""
        try:
            self.notes.set(f"misses/{self.rank}", "")
            before, deadline = self._beats(), time.monotonic() + SILENCE
            while not self.notes.check(["reason"]) and time.monotonic() < deadline:
                time.sleep(BEAT / 5)
            others = [rank for rank in range(self.ranks) if rank != self.rank]
            after = self._beats()
            dead = [rank for rank in others if before[rank] == after[rank]]
            late = [rank for rank in others if not self.notes.check([f"misses/{rank}"])]
            text = f"{self._place(*dead)}: the process has died or is frozen"
            if not dead:
                text = f"{self._place(*late)}: no answer for {self.timeout:g} seconds (see parallel.timeout)"
            lost = Lost(self._leave(text))
            lost.orphaned = 0 in dead or (0 in late and not dead)
        except RuntimeError:  # the store went with the process that held it
            lost = Lost(f"{self._place(0)}: the process has died")
            lost.orphaned = True
        raise lost

    def _beats(self) -> list[bytes]:
        keys = [f"beat/{rank}" for rank in range(self.ranks)]
        return [self.notes.get(key) if self.notes.check([key]) else b"" for key in keys]


def _told(error: BaseException) -> str:
    if isinstance(error, FewstepError):
        return str(error)
    if isinstance(error, Interrupted):
        return f"interrupted by signal {error.number}"
    return f"{type(error).__name__}: {first_line(error)}"


def _disconnected(error: Exception) -> bool:
    """Whether this is what a collective raises when another process is gone or late."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


@contextmanager
def joined(config: ParallelConfig, device: str) -> Iterator[Processes]:
    """The processes that torchrun started, or the one that there is. The group that is made lives as long as they do.

    Args:
        device: the key ``train.device``.

    Raises:
        FewstepError: for a kind that does not fit what was started, or too few GPUs.
    """
    ranks = dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1:
        if config.kind not in ("auto", "none"):
            raise invalid("parallel.kind", config.kind, "auto or none, since there is one process; see torchrun")
        yield Processes()
        return
    if config.kind == "none":
        raise invalid("parallel.kind", config.kind, f"auto, ddp or fsdp, since torchrun started {ranks} processes")
    if not dist.is_initialized():
        _start_group(config.timeout, device)
    group = Group(config.timeout)
    try:
        with group.watched():
            yield group
    except Lost:
        atexit.unregister(dist.destroy_process_group)  # which would wait for the missing
        raise
    finally:
        group.close()


def _start_group(timeout: float, device: str) -> None:
    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if cuda:
        local, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= there:
            raise invalid(
                "torchrun --nproc-per-node", f"{local + 1} or more", f"at most {there}, the GPUs of this machine"
            )
        torch.cuda.set_device(local)
    # On GPUs the meetings of the host notice first who is missing; NCCL's own limit is the last resort.
    limit = START if cuda else timedelta(seconds=timeout)
    store, rank, ranks = next(rendezvous("env://", timeout=START))
    try:
        store.set(f"started/{rank}", "")
        store.wait([f"started/{other}" for other in range(ranks)], START)
    except dist.DistError:
        raise Lost(f"not all of {ranks} processes have started within {START}") from None
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=limit)
    atexit.register(dist.destroy_process_group)
