"""The micro-batches of a run, read ahead of the iteration by a thread if the data set says that reading is slow."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewstep.core.batch import Batch

if TYPE_CHECKING:
    from fewstep.engine.setup import Setup

Read = tuple[Batch, list[str]]  # a batch, and the data set's notes about it


class Reader:
    """Reads batches; those of the next iteration while the current one is computed.

    A single thread then accesses the data set, in the order of the iterations. The samples of a batch and their
    augmentation depend only on its place in the run, so reading ahead changes nothing but the time.

    Attributes:
        waited: seconds that iterations have waited for their batches.
    """

    def __init__(self, run: Setup) -> None:
        self.run, self.waited = run, 0.0
        self.thread: ThreadPoolExecutor | None = None
        if run.dataset.reads_ahead:
            # The number of CPU threads, and which GPU "cuda" is, are settings of each thread.
            gpu = torch.cuda.current_device() if run.device.type == "cuda" else None
            self.thread = ThreadPoolExecutor(1, "reader", _like_the_main_thread, (torch.get_num_threads(), gpu))
        self._begun: dict[int, list[Future[Read]]] = {}

    def iteration(self, step: int) -> list[Batch]:
        """The micro-batches of this process. Waits for them, not for those of the next iteration."""
        started = time.perf_counter()
        if self.thread is None:
            reads = [self._read(step, micro) for micro in self.run.micro_batches]
        else:
            begun = self._begun.pop(step, None) or self._begin(self.thread, step)
            if step + 1 < self.run.config.steps:
                self._begun = {step + 1: self._begin(self.thread, step + 1)}
            reads = [future.result() for future in begun]
        self.waited += time.perf_counter() - started
        return [self._told(read) for read in reads]

    def batch(self, step: int, micro: int = 0) -> Batch:
        """A single micro-batch, read again even if it was read before."""
        if self.thread is None:
            return self._told(self._read(step, micro))
        return self._told(self.thread.submit(self._read, step, micro).result())

    def close(self) -> None:
        """Read no further ahead."""
        for future in (future for begun in self._begun.values() for future in begun):
            future.cancel()
        self._begun = {}

    def _begin(self, thread: ThreadPoolExecutor, step: int) -> list[Future[Read]]:
        return [thread.submit(self._read, step, micro) for micro in self.run.micro_batches]

    def _read(self, step: int, micro: int) -> Read:
        """Micro-batches take the place of ranks, so an iteration sees the same samples however it is divided."""
        config, dataset = self.run.config, self.run.dataset
        batch = dataset.training_batch(step, config.batch_size, self.run.seed, rank=micro, ranks=config.accumulate)
        if self.thread is not None and self.run.device.type == "cuda":
            batch = batch.mapped(_pinned)
        return batch, dataset.notes()

    def _told(self, read: Read) -> Batch:
        batch, notes = read
        for note in notes:
            self.run.say(note)
        return batch


def _like_the_main_thread(threads: int, gpu: int | None) -> None:
    torch.set_num_threads(threads)
    if gpu is not None:
        torch.cuda.set_device(gpu)


def _pinned(tensor: Tensor) -> Tensor:
    """The tensor in page-locked memory, from which a GPU can copy while it computes."""
    return tensor if tensor.is_cuda else tensor.pin_memory()
