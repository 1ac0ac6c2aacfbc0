"""The queue of the page: one job at a time, in the order in which they came."""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fewstep.errors import FewstepError
from fewstep_shapes3d.app.maker import Made, Maker, Order

MOST_WAITING, KEPT = 32, 48  # limits of jobs that wait, and of ended ones that can still be fetched
WAITING, RUNNING, DONE, FAILED, CANCELLED = "waiting", "running", "done", "failed", "cancelled"


class _Cancelled(Exception):
    """Ends a job between two steps."""


@dataclass(eq=False)
class Job:
    """An order and its state. ``text`` says what is done now, or why it failed."""

    number: int
    order: Order
    state: str = WAITING
    text: str = ""
    made: Made | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)

    def tell(self, text: str) -> None:
        """Record what is done now. Raises if the job was cancelled."""
        if self.cancelled.is_set():
            raise _Cancelled
        self.text = text


class Jobs:
    """Makes what is ordered in a thread of its own.

    Args:
        maker: makes objects.
        ended: told of every job that has ended.
    """

    def __init__(self, maker: Maker, ended: Callable[[Job], None]) -> None:
        self.maker, self.ended = maker, ended
        self._waiting: deque[Job] = deque()
        self._jobs: dict[int, Job] = {}
        self._change, self._closed, self._count = threading.Condition(), False, 0
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._thread.start()

    def add(self, order: Order) -> Job:
        """Put an order into the queue.

        Raises:
            FewstepError: too many are waiting already.
        """
        with self._change:
            if len(self._waiting) >= MOST_WAITING:
                raise FewstepError(f"{MOST_WAITING} objects are waiting already; try again when some of them are made")
            self._count += 1
            job = self._jobs[self._count] = Job(self._count, order)
            self._waiting.append(job)
            ended = [one for one in self._jobs.values() if one.state not in (WAITING, RUNNING)]
            for old in ended[: max(len(ended) - KEPT, 0)]:
                del self._jobs[old.number]
            self._change.notify()
        return job

    def get(self, number: int) -> Job | None:
        """The job of this number, unless it was long ago."""
        return self._jobs.get(number)

    def ahead(self, job: Job) -> int:
        """How many jobs come before it."""
        with self._change:
            running = any(one.state == RUNNING for one in self._jobs.values())
            return self._waiting.index(job) + running if job in self._waiting else 0

    def cancel(self, job: Job) -> None:
        """Take a job out of the queue, or end it after the current step."""
        with self._change:
            job.cancelled.set()
            if job in self._waiting:
                self._waiting.remove(job)
                job.state = CANCELLED

    def close(self, timeout: float = 20.0) -> None:
        """End after the current step, waiting for it at most ``timeout`` seconds."""
        with self._change:
            self._closed = True
            for job in self._jobs.values():
                job.cancelled.set()
            self._change.notify()
        self._thread.join(timeout)

    def _work(self) -> None:
        while job := self._next():
            self._run(job)
            self.ended(job)

    def _next(self) -> Job | None:
        with self._change:
            self._change.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return None
            job = self._waiting.popleft()
            job.state = RUNNING
            return job

    def _run(self, job: Job) -> None:
        try:
            job.made = self.maker(job.order, job.tell)
            end: tuple[str, Any] = DONE, ""
        except _Cancelled:
            end = CANCELLED, ""
        except FewstepError as error:
            end = FAILED, str(error)
        except Exception as error:  # a bug: the page goes on
            traceback.print_exc()
            end = FAILED, f"an error of the program, its traceback is in the terminal: {type(error).__name__}: {error}"
        job.state, job.text = end[0], str(end[1])
