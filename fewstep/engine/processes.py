"""The processes of a run under torchrun, and how they communicate.

``Processes`` is a run of one process, whose methods do next to nothing; ``Group`` is a run of several.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from fewstep.config.parallel import ParallelConfig
from fewstep.engine.budget import Counts
from fewstep.engine.liveness import Liveness, Lost, disconnected
from fewstep.errors import invalid
from fewstep.interrupts import Interrupted

PATIENCE = timedelta(hours=2)  # for what one process does alone: preparing data, writing a checkpoint
START = timedelta(minutes=10)  # until all processes have started


class Processes:
    """One process.

    Attributes:
        rank, ranks: which process this is, of how many.
        step: the iteration that it works on, from 1; 0 before the first. For messages.
        writers: process group of the threads that write checkpoints; None for one process.
    """

    rank, ranks = 0, 1
    writers: dist.ProcessGroup | None = None

    def __init__(self) -> None:
        self.step = 0

    def share(self, micro_batches: int) -> range:
        """The micro-batches of an iteration that this process computes."""
        if micro_batches % self.ranks:
            raise invalid(
                "train.accumulate",
                micro_batches,
                f"a multiple of {self.ranks}: the micro-batches of an iteration, train.batch_size samples each, are "
                f"divided among {self.ranks} processes",
            )
        return range(self.rank, micro_batches, self.ranks)

    def summed(self, values: list[int]) -> list[int]:
        """The sums of host integers over all processes."""
        return values

    def gathered(self, values: Tensor) -> Tensor:
        """[ranks, N] the values [N], on the device, of all processes."""
        return values[None]

    def agreed(self, stop: Interrupted | None) -> Interrupted | None:
        """The signal that any of the processes was sent, so that all stop after the same iteration."""
        return stop

    def wait(self) -> None:
        """Wait until all processes have called this."""

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Run the block in the first process, and then in all others."""
        yield

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Replace what a broken connection raises in the block by a ``Lost`` that says which process is missing."""
        yield

    def total(self, counts: Counts) -> Counts:
        """The evaluation counts summed over all processes."""
        values = iter(self.summed([n for kinds in counts.values() for n in kinds.values()]))
        return {name: {kind: next(values) for kind in kinds} for name, kinds in counts.items()}


class Group(Processes):
    """Several processes.

    Besides torch's default group there are three gloo groups for host values: one for the collectives of an iteration,
    where no process is late by more than ``timeout`` seconds, one to wait for slow work, and one for the threads that
    write checkpoints.
    """

    def __init__(self, timeout: float) -> None:
        super().__init__()
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.quick = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        self.patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        self.writers = dist.new_group(backend="gloo", timeout=PATIENCE)
        self.liveness = Liveness(self.rank, self.ranks, timeout)

    def summed(self, values: list[int]) -> list[int]:
        numbers = torch.tensor(values)
        dist.all_reduce(numbers, group=self.quick)
        sums: list[int] = numbers.tolist()
        return sums

    def gathered(self, values: Tensor) -> Tensor:
        parts = [torch.empty_like(values) for _ in range(self.ranks)]
        dist.all_gather(parts, values)
        return torch.stack(parts)

    def agreed(self, stop: Interrupted | None) -> Interrupted | None:
        number = torch.tensor(stop.number if stop else 0)
        dist.all_reduce(number, dist.ReduceOp.MAX, group=self.quick)
        return Interrupted(int(number)) if number else None

    def wait(self) -> None:
        dist.barrier(self.patient)

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
            if isinstance(error, Exception) and disconnected(error):
                raise self.liveness.missing(self.step) from None
            self.liveness.ended(self.step, error)
            raise


@contextmanager
def joined(config: ParallelConfig, device: str) -> Iterator[Processes]:
    """The processes that torchrun started, or the only one. torch's default group, if made here, lives until they exit.

    Args:
        device: value of ``train.device``.

    Raises:
        FewstepError: for a ``parallel.kind`` that does not fit the started processes, or too few GPUs.
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
        group.liveness.close()


def _start_group(timeout: float, device: str) -> None:
    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if cuda:
        local, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= there:
            raise invalid(
                "torchrun --nproc-per-node", f"{local + 1} or more", f"at most {there}, the GPUs of this machine"
            )
        torch.cuda.set_device(local)
    # On GPUs the host's gloo collectives notice a missing process first; NCCL's own limit is the last resort.
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
