"""How a run shows itself: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

SMOOTHING = 0.9  # of the loss terms shown; metrics.jsonl has the raw ones


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
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=self.console)
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
