"""How a run shows its progress: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column

from fewstep.console import say

STALL = 0.1  # the wait for data is shown from this share of an iteration on
SMOOTHING = 0.9  # of the loss terms shown; metrics.jsonl has the raw ones
MARKS = 1000  # times that are kept to compute the pace


class Bar:
    """Work of known length: a bar with the time left on a terminal, elsewhere plain lines.

    Args:
        start: amount of work done before this process began.
        every: seconds between plain lines; there is always one at the end.
        name: label of the work, such as the run or the stage that trains.
    """

    def __init__(self, console: Console, total: int, start: int, every: float, name: str = "") -> None:
        self.console, self.start, self.every, self.label = console, start, every, f"{name}: " if name else ""
        self.shown = time.monotonic()
        self.marks = [(start, self.shown)]
        text = TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True))  # cut first
        parts = (text, BarColumn(20), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
        self.progress = Progress(*parts, console=console, expand=True)
        self.task = self.progress.add_task("", total=total, completed=start, left="")
        if console.is_interactive:
            self.progress.start()

    def pace(self, done: int) -> float | None:
        """Seconds per unit of work, over the later half of the work done so that changes show soon; None at first."""
        if len(self.marks) == MARKS:
            self.marks = self.marks[::2]
        now, (earlier, then) = time.monotonic(), self.marks[len(self.marks) // 2]
        self.marks.append((done, now))
        return (now - then) / (done - earlier) if done > earlier else None

    def show(self, done: int, total: int, what: str, details: str = "", pace: float | None = None) -> None:
        """Show ``done`` of ``total``. A bar is labelled with ``details``, or else with ``what``; a plain line has both.

        Args:
            pace: seconds per unit of work, for the time left.
        """
        left = "" if pace is None else f"{duration(pace * (total - done))} left"
        if self.console.is_interactive:
            self.progress.update(
                self.task, completed=done, total=total, description=self.label + (details or what), left=left
            )
        elif done == self.start or done == total or time.monotonic() - self.shown >= self.every:
            self.shown = time.monotonic()
            say(self.console, "  ".join(filter(None, [f"{self.label}{what} {done}/{total}", details, left])))

    def stop(self) -> None:
        """Leave the terminal as it was."""
        if self.console.is_interactive:
            self.progress.stop()


@contextmanager
def counting(console: Console, every: float = 5.0) -> Iterator[Callable[[int, int, str], None]]:
    """A callback ``(done, total, what)`` that shows a ``Bar``; nothing is shown before its first call."""
    bars: list[Bar] = []

    def count(done: int, total: int, what: str) -> None:
        if not bars:
            bars.append(Bar(console, total, done, every))
        bars[0].show(done, total, what, pace=bars[0].pace(done))

    try:
        yield count
    finally:
        for bar in bars:
            bar.stop()


class RunProgress:
    """Shows smoothed loss terms, iterations per second and the time left; for the arguments see ``Bar``."""

    def __init__(self, console: Console, total: int, start: int = 0, every: float = 5.0, name: str = "") -> None:
        self.console, self.total, self.start, self.every, self.name = console, total, start, every, name
        self.terms: dict[str, float] = {}
        self.waited, self.wait = 0.0, 0.0  # seconds waited for data: in total, and per iteration (smoothed)

    def __enter__(self) -> RunProgress:
        self.bar = Bar(self.console, self.total, self.start, self.every, self.name)
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def update(self, row: Mapping[str, Any], waited: float = 0.0) -> None:
        """Show the row of an iteration: ``slat: vm 0.0312  vd 0.104  12.5 steps/s``, followed by ``waits for data 35%``
        if the share is large.

        Args:
            waited: seconds that the run has waited for its data so far.
        """
        for name, value in row["loss"].items():
            self.terms[name] = SMOOTHING * self.terms.get(name, value) + (1 - SMOOTHING) * value
        pace = self.bar.pace(row["step"])
        terms = [f"{name} {value:.4g}" for name, value in self.terms.items()]
        self.wait = SMOOTHING * self.wait + (1 - SMOOTHING) * (waited - self.waited)
        self.waited = waited
        speed = [f"{1 / pace:.3g} steps/s"] if pace else []
        if pace and self.wait > STALL * pace:
            speed.append(f"waits for data {min(1.0, self.wait / pace):.0%}")
        self.bar.show(row["step"], self.total, "step", "  ".join([*terms, *speed]), pace)

    def say(self, line: str) -> None:
        """Print a line above the live display, or a plain one."""
        say(self.console, line, "yellow" if line.startswith("warning") else None)


def duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
