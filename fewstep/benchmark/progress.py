"""The progress of a bench: a live bar on a terminal, a plain line a cell elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fewstep.benchmark.entrants import Entrant
from fewstep.benchmark.rows import FLOW, Row
from fewstep.benchmark.summary import seconds

CELL = 12  # cost of decoding and measuring a cell, in network evaluations: a guess for the time left


class BenchProgress(Progress):
    """Shows each cell (an entrant at a step count under a seed) when it is done, with its headline measure."""

    def __init__(self, console: Console, cells: Sequence[tuple[Entrant, int]], seeds: int, headline: str) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        super().__init__(*columns, console=console, disable=not console.is_terminal)
        evaluations = [steps * sum(1 + (m.contract.guidance != 1.0) for m in one.models) for one, steps in cells]
        self.bar = self.add_task("measuring", total=seeds * (sum(evaluations) + CELL * len(cells)))
        self.headline, self.done, self.cells = headline, 0, seeds * len(cells)

    def cell(self, rows: Sequence[Row]) -> None:
        """A cell is done, with these rows."""
        self.done += 1
        first, values = rows[0], {row.metric: row.value for row in rows}
        steps = f"{first.steps} step{'s' * (first.steps > 1)}"
        text = f"[{self.done}/{self.cells}] seed {first.seed}  {first.label}  {steps}"
        if self.headline in values:
            text += f"  {self.headline} {values[self.headline]:.4g}"
        self.update(self.bar, advance=first.nfe + CELL, description=text)
        if self.disable:
            line = f"{text}  flow {1000 * seconds(rows, FLOW):.3g} ms"
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)
