"""What a bench returns and writes: ``BenchTable``, and the files of the report."""

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
from fewstep.benchmark.differences import Difference
from fewstep.benchmark.entrants import RESERVED, TEACHER, UNDISTILLED
from fewstep.benchmark.page import write_page
from fewstep.benchmark.ranking import MANY, ranking
from fewstep.benchmark.rows import FLOW, Line, Row, write_csv
from fewstep.benchmark.summary import by_cell, seconds
from fewstep.benchmark.tables import html, markdown, mean, measures, milliseconds
from fewstep.console import number_of, say
from fewstep.core.suite import SheetRow, Suite
from fewstep.errors import FewstepError
from fewstep.files import new_file, write_file
from fewstep.words import markdown_escaped, shortened

OBJECTS = 4  # on a strip
WIDTH = 240  # characters of a table as plain text, so that nothing is folded


@dataclass(frozen=True, repr=False)
class BenchTable:
    """What a bench measured. ``print`` and notebooks show it as tables.

    Attributes:
        folder: of the report, with ``rows.csv``, ``summary.csv``, ``table.md``, ``chart.png`` and ``sheet.png``.
        rows: every measurement, by method, steps, seed and measure.
        lines: the rows summarised over seeds.
        title: what was measured.
        tables: quality, differences, time per sample, and what moved since an earlier bench, among others.
        notes: how to read the columns.
        verdicts: a sentence for each student.
        differences: of every student from the reference method and from undistilled, in every measure.
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
            FewstepError: if pandas is not installed.
        """
        try:
            import pandas  # type: ignore[import-untyped,import-not-found,unused-ignore]
        except ImportError:
            raise FewstepError("to_pandas: needs pandas, which is not installed; run: pip install pandas") from None
        return pandas.DataFrame([asdict(row) for row in self.rows])

    def chart(self) -> Any:
        """Quality against steps and against time, or the ranking of many methods, as a PIL image."""
        return _image(self.folder / "chart.png")

    def sheet(self) -> Any:
        """Sampled objects side by side, as a PIL image."""
        return _image(self.folder / "sheet.png")

    def add_changes(self, changes: Sequence[Change], notes: Iterable[str]) -> None:
        """Add what changed since an earlier bench, and write it to ``compare.csv``."""
        self._write_csv("compare.csv", Change, map(asdict, changes))
        moved = changes_table(changes)
        if moved.row_count:
            self.tables.append(moved)
        self.notes.extend([*notes, verdict(changes)])

    def write(self, suite: Suite, shown: Mapping[tuple[str, int], Any], columns: int, page: bool = False) -> None:
        """Write ``summary.csv`` and ``table.md``, then chart, contact sheet, strip and, if ``page``, the page.

        Args:
            shown: objects for the sheet by (label, steps); ``columns`` of each are drawn.
            page: also write ``report.html`` and the folder ``objects``.
        """
        lines = ({**asdict(line), **line.bounds()} for line in self.lines)
        self._write_csv("summary.csv", Line, lines, ("low", "high"))
        if self.differences:
            self._write_csv("differences.csv", Difference, map(asdict, self.differences))
        write_file(self.folder / "table.md", self.markdown())
        measured = measures(self.lines, suite.headline)
        panels = [name for name in dict.fromkeys((suite.headline, *suite.charts)) if name in measured]
        with new_file(self.folder / "chart.png") as path:
            if len({line.label for line in self.lines}.difference(RESERVED)) > MANY:
                ranking(self.lines, suite, path, self.title)
            else:
                chart(self.lines, panels or [suite.headline], suite, path, self.title)
        order = list(dict.fromkeys([TEACHER, UNDISTILLED, *(line.label for line in self.lines)]))
        keys = sorted(shown, key=lambda key: (key[0] != TEACHER, key[1], order.index(key[0])))
        rows = self._sheet_rows(suite, {key: shown[key] for key in keys})
        with new_file(self.folder / "sheet.png") as path:
            suite.sheet(rows, path, columns)
        few = _overview(keys)
        with new_file(self.folder / "strip.png") as path:
            suite.strip([rows[index] for index in few], path, min(columns, OBJECTS))
        if page:
            write_page(self, suite, rows, few, columns)

    def _write_csv(
        self, name: str, record: type, values: Iterable[Mapping[str, Any]], further: Sequence[str] = ()
    ) -> None:
        with new_file(self.folder / name) as path:
            write_csv(path, record, values, further)

    def _sheet_rows(self, suite: Suite, shown: Mapping[tuple[str, int], Any]) -> list[SheetRow]:
        """A row for each of ``shown``, with its score and its time."""
        cells, rows = by_cell(self.lines), []
        for (label, steps), objects in shown.items():
            cell, count = cells[label, steps], number_of(steps, "step")
            notes = [f"{milliseconds(seconds(cell.values(), FLOW))} ms per sample"]
            if suite.headline in cell:
                notes.insert(0, f"{suite.in_words(suite.headline)} {mean(cell[suite.headline])}")
            group = TEACHER if label == TEACHER else count
            rows.append(SheetRow(f"{shortened(label, NAME)}, {count}", objects, tuple(notes), group))
        return rows


def _overview(keys: Sequence[tuple[str, int]]) -> list[int]:
    """The rows of a strip: the teacher, undistilled in the fewest steps, and the first student in its two fewest."""
    first = next((label for label, _ in keys if label not in RESERVED), UNDISTILLED)
    places = {name: [at for at, key in enumerate(keys) if key[0] == name] for name in (TEACHER, UNDISTILLED, first)}
    return list(dict.fromkeys([*places[TEACHER], *places[UNDISTILLED][:1], *places[first][:2]]))


def _image(path: Path) -> Any:
    from PIL import Image

    with Image.open(path) as image:
        image.load()
        return image
