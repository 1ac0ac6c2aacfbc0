"""How a run shows itself: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SMOOTHING = 0.9  # of the loss terms shown; metrics.jsonl has the raw ones


class Bar:
    """Work of known length: a bar with the time left on a terminal, elsewhere plain lines.

    Args:
        start: what was done before this process began.
        every: seconds between plain lines; one at the end comes always.
    """

    def __init__(self, console: Console, total: int, start: int, every: float) -> None:
        self.console, self.start, self.every = console, start, every
        self.began = self.shown = time.monotonic()
        text = TextColumn("{task.description}", markup=False)
        self.progress = Progress(text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console)
        self.task = self.progress.add_task("", total=total, completed=start)
        if console.is_terminal:
            self.progress.start()

    def show(self, done: int, total: int, what: str, details: str = "") -> None:
        """``done`` of ``total``. A bar is labelled by ``details``, or else by ``what``; a plain line has both."""
        now = time.monotonic()
        if self.console.is_terminal:
            self.progress.update(self.task, completed=done, total=total, description=details or what)
        elif done == self.start or done == total or now - self.shown >= self.every:
            self.shown = now
            parts = [f"{what} {done}/{total}", details]
            if done > self.start:
                parts.append(f"{duration((now - self.began) / (done - self.start) * (total - done))} left")
            plain(self.console, "  ".join(filter(None, parts)))

    def stop(self) -> None:
        """Leave the terminal as it was."""
        if self.console.is_terminal:
            self.progress.stop()


@contextmanager
def counting(console: Console, every: float = 5.0) -> Iterator[Callable[[int, int, str], None]]:
    """A callback ``(done, total, what)`` that shows a ``Bar``; nothing is shown before its first call."""
    bars: list[Bar] = []

    def count(done: int, total: int, what: str) -> None:
        if not bars:
            bars.append(Bar(console, total, done, every))
        bars[0].show(done, total, what)

    try:
        yield count
    finally:
        for bar in bars:
            bar.stop()


class RunProgress:
    """Shows loss terms (smoothed), iterations a second and the time left; for the arguments see ``Bar``."""

    def __init__(self, console: Console, total: int, start: int = 0, every: float = 5.0) -> None:
        self.console, self.total, self.start, self.every = console, total, start, every
        self.terms: dict[str, float] = {}

    def __enter__(self) -> RunProgress:
        self.bar = Bar(self.console, self.total, self.start, self.every)
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def update(self, row: Mapping[str, Any]) -> None:
        """Take the row of an iteration. Shown is ``vm 0.0312  vd 0.104  12.5 steps/s``."""
        for name, value in row["loss"].items():
            self.terms[name] = SMOOTHING * self.terms.get(name, value) + (1 - SMOOTHING) * value
        speed = (row["step"] - self.start) / max(time.monotonic() - self.bar.began, 1e-9)
        terms = "  ".join(f"{name} {value:.4g}" for name, value in self.terms.items())
        self.bar.show(row["step"], self.total, "step", f"{terms}  {speed:.3g} steps/s")

    def say(self, line: str) -> None:
        """A line above the live display, or a plain one."""
        plain(self.console, line, "yellow" if line.startswith("warning") else None)


def plain(console: Console, line: str, style: str | None = None) -> None:
    """Print a line as it is: not wrapped, highlighted or read as markup."""
    console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
