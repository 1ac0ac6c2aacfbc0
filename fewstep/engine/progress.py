"""How a run shows itself: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

SMOOTHING = 0.9  # of the loss terms shown; metrics.jsonl has the raw ones


@contextmanager
def counting(console: Console, every: float = 5.0) -> Iterator[Callable[[int, int, str], None]]:
    """A callback ``(done, total, what)`` for work of known length: a bar with the time left on a terminal, elsewhere a
    plain line at the first call, every ``every`` seconds and at the end. Nothing is shown before the first call."""
    bar = Progress(*_columns(), console=console)
    first, began, shown = -1, 0.0, 0.0

    def count(done: int, total: int, what: str) -> None:
        nonlocal first, began, shown
        now = time.monotonic()
        fresh = first < 0
        if fresh:
            first, began = done, now
            bar.add_task(what, total=total, completed=done)
        if console.is_terminal:
            bar.start()
            bar.update(bar.task_ids[0], completed=done, total=total, description=what)
        elif fresh or now - shown >= every or done == total:
            shown = now
            left = (now - began) / (done - first) * (total - done) if done > first else None
            time_left = "" if left is None else f"  {duration(left)} left"
            console.print(f"{what} {done}/{total}{time_left}", highlight=False, markup=False, soft_wrap=True)

    try:
        yield count
    finally:
        if bar.live.is_started:
            bar.stop()


def _columns() -> tuple[ProgressColumn, ...]:
    text = TextColumn("{task.description}", markup=False)
    return text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()


class RunProgress:
    """Shows loss terms (smoothed), iterations a second and the time left.

    Args:
        total: iterations of the run.
        start: iterations done before this process began.
        every: seconds between plain lines.
    """

    def __init__(self, console: Console, total: int, start: int = 0, every: float = 5.0) -> None:
        self.console, self.total, self.start, self.every = console, total, start, every
        self.terms: dict[str, float] = {}
        self.began = self.shown = time.monotonic()
        self.bar: Progress | None = None
        self.task = TaskID(0)

    def __enter__(self) -> RunProgress:
        self.began = self.shown = time.monotonic()
        if self.console.is_terminal:
            self.bar = Progress(*_columns(), console=self.console)
            self.task = self.bar.add_task("distilling", total=self.total, completed=self.start)
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def update(self, row: Mapping[str, Any]) -> None:
        """Take the row of an iteration."""
        for name, value in row["loss"].items():
            self.terms[name] = SMOOTHING * self.terms.get(name, value) + (1 - SMOOTHING) * value
        step, now = int(row["step"]), time.monotonic()
        speed = (step - self.start) / max(now - self.began, 1e-9)
        if self.bar is not None:
            self.bar.update(self.task, completed=step, description=self.text(speed))
        elif now - self.shown >= self.every or step == self.total:
            self.shown = now
            left = (self.total - step) / speed
            self.say(f"step {step}/{self.total}  {self.text(speed)}  {duration(left)} left")

    def text(self, speed: float) -> str:
        """Loss terms and speed: ``vm 0.0312  vd 0.104  12.5 steps/s``."""
        terms = "  ".join(f"{name} {value:.4g}" for name, value in self.terms.items())
        return f"{terms}  {speed:.3g} steps/s"

    def say(self, line: str) -> None:
        """A line above the live display, or a plain one."""
        style = "yellow" if line.startswith("warning") else None
        self.console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
