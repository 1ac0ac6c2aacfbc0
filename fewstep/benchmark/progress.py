"""How a bench shows its progress: the cell being measured, and the time left."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import fmean

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from fewstep.console import say
from fewstep.engine.progress import duration

REST = 1 / 3  # assumed time of decoding and measuring, relative to the teacher's sampling, until a cell has ended


class CellProgress:
    """Estimates the time left from the evaluations that are left, and from the time that cells take besides them.

    Args:
        costs: evaluations of each cell, the teacher's first.
    """

    def __init__(self, console: Console, costs: Sequence[float]) -> None:
        self.console, self.costs = console, costs
        self.number, self.done, self.sampling = 0, 0.0, 0.0  # cells, evaluations and their seconds so far
        self.rests: list[float] = []  # seconds that each cell took besides its sampling
        text, cell, left = (
            TextColumn(text, markup=False)
            for text in ("{task.description}", "{task.fields[cell]}", "{task.fields[left]}")
        )
        self.progress = Progress(text, BarColumn(20), cell, left, console=console)
        self.task = self.progress.add_task("warming up", total=1.0, cell="", left="")
        self.began = self.start = time.monotonic()
        if console.is_interactive:
            self.progress.start()

    def begin(self, what: str) -> None:
        """A cell begins."""
        self.began, self.seconds, self.ticks, self.what = time.monotonic(), 0.0, 0.0, what
        if not self.number and not self.console.is_interactive:
            say(self.console, f"{what}  cell 1/{len(self.costs)} begins")
        self._show()

    def tick(self, evaluations: float) -> None:
        """This many further evaluations of the cell have begun."""
        if self.console.is_interactive:
            self.ticks, self.seconds = self.ticks + evaluations, time.monotonic() - self.began
            self._show()

    def end(self, result: str, sampling: float) -> None:
        """The cell ends.

        Args:
            result: the cell's result in words.
            sampling: seconds that its evaluations took.
        """
        self.done, self.sampling = self.done + self.costs[self.number], self.sampling + sampling
        self.rests.append(max(time.monotonic() - self.began - sampling, 0.0))
        self.number, self.ticks, self.seconds = self.number + 1, 0.0, 0.0
        if not self.console.is_interactive:
            left = f"  {duration(self.left() or 0)} left"
            say(self.console, f"{self.what}  {result}  cell {self.number}/{len(self.costs)}{left}")

    def left(self) -> float | None:
        """Seconds left; None before the first evaluation."""
        done = self.done + self.ticks
        if not done:
            return None
        pace = (self.sampling + self.seconds) / done
        rest = fmean(self.rests) if self.rests else REST * pace * self.costs[0]
        return max(pace * (sum(self.costs) - done), 0.0) + rest * (len(self.costs) - self.number)

    def _show(self) -> None:
        left, spent = self.left(), time.monotonic() - self.start
        text = "" if left is None else f"{duration(left)} left"
        part = 0.0 if left is None else spent / max(spent + left, 1e-9)
        cell = f"cell {self.number + 1}/{len(self.costs)}"
        self.progress.update(self.task, description=self.what, completed=part, cell=cell, left=text)

    def stop(self) -> None:
        """Leave the terminal as it was."""
        if self.console.is_interactive:
            self.progress.stop()
