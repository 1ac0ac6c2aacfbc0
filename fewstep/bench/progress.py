"""How a bench shows itself: a live bar on a terminal, a plain line a cell elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fewstep.bench.entrants import Entrant
from fewstep.bench.rows import FLOW, Row
from fewstep.bench.summary import seconds

CELL = 12  # what decoding and measuring cost, in evaluations: only the time left depends on it


class BenchProgress:
    """Shows each cell as it is done, with its headline measure.

    Args:
        entrants: all that run, for the total.
        seeds: how often.
        headline: the measure that is shown.
    """

    def __init__(self, console: Console, entrants: Sequence[Entrant], seeds: int, headline: str) -> None:
        self.console, self.headline = console, headline
        self.cells = seeds * sum(len(one.steps) for one in entrants)
        self.total = seeds * sum(one.cost + CELL * len(one.steps) for one in entrants)
        self.done = 0
        self.bar: Progress | None = None
        self.task = TaskID(0)

    def __enter__(self) -> BenchProgress:
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=self.console)
            self.task = self.bar.add_task("measuring", total=self.total)
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def took(self, entrant: Entrant, steps: int, seed: int, rows: list[Row]) -> None:
        """A cell is done."""
        self.done += 1
        values = {row.metric: row.value for row in rows}
        text = f"[{self.done}/{self.cells}] seed {seed}  {entrant.label}  {steps} step{'s' * (steps > 1)}"
        if self.headline in values:
            text += f"  {self.headline} {values[self.headline]:.4g}"
        if self.bar is not None:
            cost = steps * entrant.cost / sum(entrant.steps) + CELL
            self.bar.update(self.task, advance=cost, description=text)
        else:
            self.say(f"{text}  flow {1000 * seconds(rows, FLOW):.3g} ms")

    def say(self, line: str) -> None:
        """A line above the bar, or a plain one."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)
