"""What a bench returns and leaves behind: ``BenchTable``, and the files of the report."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fewstep.benchmark.chart import NAME, chart
from fewstep.benchmark.compare import Change, changes_table, verdict
from fewstep.benchmark.comparisons import LEVEL, cost_table, detail_table, difference_table, training_table
from fewstep.benchmark.differences import Difference, at_equal_cost, differences
from fewstep.benchmark.entrants import RESERVED, TEACHER, UNDISTILLED
from fewstep.benchmark.page import write_page
from fewstep.benchmark.resampling import Draws
from fewstep.benchmark.rows import FLOW, NON_FINITE, Line, Row, write_csv
from fewstep.benchmark.summary import by_cell, seconds, summarise
from fewstep.benchmark.tables import html, markdown, mean, measures, milliseconds, quality_table, time_table
from fewstep.benchmark.verdict import verdicts
from fewstep.console import number_of, say
from fewstep.core.suite import SheetRow, Suite
from fewstep.errors import FewstepError
from fewstep.files import new_file, write_file
from fewstep.words import markdown_escaped, shortened

OBJECTS = 4  # on a strip
WIDTH = 240  # characters of a table as plain text: nothing is folded


@dataclass(frozen=True, repr=False)
class BenchTable:
    """What a bench measured. ``print`` and notebooks show it as tables.

    Attributes:
        folder: of the report, with ``rows.csv``, ``summary.csv``, ``table.md``, ``chart.png`` and ``sheet.png``.
        rows: every measurement, by method, steps, seed and measure.
        lines: the rows summarised over seeds.
        title: what was measured.
        tables: quality, time a sample, and what moved since an earlier bench.
        notes: how the columns are to be read.
        verdicts: a sentence for each student.
        differences: of every student to the reference method and to undistilled, in every measure.
    """

    folder: Path
    rows: list[Row]
    lines: list[Line]
    title: str
    tables: list[Table]
    notes: list[str]
    verdicts: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)

    def show(self, console: Console) -> None:
        """Print the tables, their notes and the verdicts."""
        for table in self.tables:
            console.print(table)
        for line in (*self.notes, "", *self.verdicts):
            say(console, line)

    def __str__(self) -> str:
        text = io.StringIO()
        self.show(Console(file=text, width=WIDTH))
        return f"{self.title}\n{text.getvalue()}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        verdicts = "".join(f"<p>{escape(verdict)}</p>" for verdict in self.verdicts)
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        return f"<h4>{escape(self.title)}</h4>{verdicts}{''.join(map(html, self.tables))}<ul>{notes}</ul>"

    def markdown(self) -> str:
        """The text of ``table.md``."""
        verdicts = [f"{markdown_escaped(verdict)}\n" for verdict in self.verdicts]
        tables = [f"## {table.title}\n\n{markdown(table)}\n" for table in self.tables]
        notes = [f"* {markdown_escaped(note)}" for note in self.notes]
        return "\n".join([f"# {markdown_escaped(self.title)}\n", *verdicts, *tables, *notes]) + "\n"

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with a record for each measurement, in the columns of ``Row``.

        Raises:
            FewstepError: where pandas is not installed.
        """
        try:
            import pandas  # type: ignore[import-untyped,import-not-found,unused-ignore]
        except ImportError:
            raise FewstepError("to_pandas: needs pandas, which is not installed; run: pip install pandas") from None
        return pandas.DataFrame([asdict(row) for row in self.rows])

    def chart(self) -> Any:
        """Quality against steps and against time, as a PIL image."""
        return _image(self.folder / "chart.png")

    def sheet(self) -> Any:
        """Sampled objects side by side, as a PIL image."""
        return _image(self.folder / "sheet.png")

    def add_changes(self, changes: Sequence[Change], notes: Iterable[str]) -> None:
        """Add what changed since an earlier bench, and write it to ``compare.csv``."""
        with new_file(self.folder / "compare.csv") as path:
            write_csv(path, Change, map(asdict, changes))
        moved = changes_table(changes)
        if moved.row_count:
            self.tables.append(moved)
        self.notes.extend([*notes, verdict(changes)])

    def write(self, suite: Suite, shown: Mapping[tuple[str, int], Any], columns: int, page: bool = False) -> None:
        """Write ``summary.csv`` and ``table.md``, then chart, contact sheet and strip, and where asked for the page.

        Args:
            shown: objects for the sheet by (label, steps); ``columns`` of each are drawn.
            page: write ``report.html`` and the folder ``objects`` too.
        """
        lines = ({**asdict(line), **line.bounds()} for line in self.lines)
        with new_file(self.folder / "summary.csv") as path:
            write_csv(path, Line, lines, ("low", "high"))
        if self.differences:
            with new_file(self.folder / "differences.csv") as path:
                write_csv(path, Difference, map(asdict, self.differences))
        write_file(self.folder / "table.md", self.markdown())
        measured = measures(self.lines, suite.headline)
        panels = [name for name in dict.fromkeys((suite.headline, *suite.charts)) if name in measured]
        with new_file(self.folder / "chart.png") as path:
            chart(self.lines, panels or [suite.headline], suite, path, self.title)
        order = list(dict.fromkeys([TEACHER, UNDISTILLED, *(label for label, _ in by_cell(self.lines))]))
        keys = sorted(shown, key=lambda key: (key[0] != TEACHER, key[1], order.index(key[0])))
        rows = self._sheet_rows(suite, {key: shown[key] for key in keys})
        with new_file(self.folder / "sheet.png") as path:
            suite.sheet(rows, path, columns)
        few = _overview(keys)
        with new_file(self.folder / "strip.png") as path:
            suite.strip([rows[one] for one in few], path, min(columns, OBJECTS))
        if page:
            write_page(self, suite, rows, few, columns)

    def _sheet_rows(self, suite: Suite, shown: Mapping[tuple[str, int], Any]) -> list[SheetRow]:
        """A row for each of ``shown``, with its score and its time."""
        cells, rows = by_cell(self.lines), []
        for (label, steps), objects in shown.items():
            found, count = cells[label, steps], number_of(steps, "step")
            notes = [f"{milliseconds(seconds(found.values(), FLOW))} ms a sample"]
            if suite.headline in found:
                notes.insert(0, f"{suite.in_words(suite.headline)} {mean(found[suite.headline])}")
            group = TEACHER if label == TEACHER else count
            rows.append(SheetRow(f"{shortened(label, NAME)}, {count}", objects, tuple(notes), group))
        return rows


def _overview(keys: Sequence[tuple[str, int]]) -> list[int]:
    """What a strip shows: the teacher, undistilled in the fewest steps, and the first student in its two fewest."""
    first = next((label for label, _ in keys if label not in RESERVED), UNDISTILLED)
    places = {name: [at for at, key in enumerate(keys) if key[0] == name] for name in (TEACHER, UNDISTILLED, first)}
    return list(dict.fromkeys([*places[TEACHER], *places[UNDISTILLED][:1], *places[first][:2]]))


def _image(path: Path) -> Any:
    from PIL import Image

    with Image.open(path) as image:
        image.load()
        return image


def tabulate(
    folder: Path, suite: Suite, rows: list[Row], record: Mapping[str, Any], draws: Draws, reference: str
) -> BenchTable:
    """Summarise the rows and set them in tables, with notes on how to read the columns.

    Args:
        record: the content of ``environment.json``.
        draws: of the objects.
        reference: the label that the others are compared with.
    """
    lines, seeds = summarise(rows, suite.lower_is_better, draws), len(record["seeds"])
    found = differences(rows, suite, draws, reference)
    title = f"{record['backbone']}: {number_of(record['samples'], 'held-out sample')}, {number_of(seeds, 'seed')}"
    made = (
        quality_table(lines, suite.headline, suite.lower_is_better),
        difference_table(found, suite, reference),
        time_table(lines),
        cost_table(lines, at_equal_cost(rows, lines, suite, draws), suite.headline),
        detail_table(lines),
        training_table(lines, record["students"]),
    )
    tables = [table for table in made if table is not None]
    teacher = record["teacher"]["contract"]["steps"][0]
    notes = [
        f"{record['machine']}; all methods start from the same noise; {_interval(lines, seeds, draws)}.",
        f"gap closed: (U - S) / (U - T) of the means of {suite.headline}, S the student, U undistilled at the same "
        f"steps, T the teacher at {teacher}; not resolved: its interval is wider than the gap and holds 0.",
        "time: a sample's share of its batch, median over seeds; x flow, x whole: times faster than the teacher in "
        "sampling alone and in all parts.",
    ]
    if found:
        nearer = f"; nearer: share of objects nearer to the truth by {suite.nearness}" if suite.nearness else ""
        notes.append(
            "minus: of the same objects from the same noise; p (Holm): two-sided, adjusted for the methods compared in "
            f"as many steps; bold: better, and p below {LEVEL}{nearer}. All measures are in differences.csv."
        )
    notes.append(
        "equal cost: undistilled or the teacher in the fewest measured steps that take at least the student's "
        "evaluations, and at least its time."
    )
    measured = {line.metric for line in lines}
    notes += [f"{names}: {text}" for names, text in suite.legend.items() if measured & set(names.split(", "))]
    if any(not line.made_for for line in lines):
        notes.append("steps*: the student's contract does not name this step count.")
    broken = {line.label: line.value for line in lines if line.metric == NON_FINITE}
    notes += [
        f"{name}!: {100 * value:.0f} % of the samples were not finite, set to 0" for name, value in broken.items()
    ]
    return BenchTable(folder, rows, lines, title, tables, notes, verdicts(lines, suite, found), found)


def _interval(lines: Iterable[Line], seeds: int, draws: Draws) -> str:
    """What ± stands for."""
    trainings = max((line.trainings for line in lines), default=0)
    units = "over the trainings, each with noise of its own," if trainings > 1 else "over the seeds of the noise"
    if draws.objects:
        objects = f"{draws.objects} objects, resampled {len(draws.counts)} times"
        what = f"{units} and over {objects}" if seeds > 1 else f"over {objects}"
    elif seeds > 1:
        what = units
    else:
        return "one seed, so no intervals"
    alone = "" if trainings > 1 else "; one training of each method, so nothing is said on other trainings"
    return f"± is half the 95 % interval {what} (Student's t){alone}"
