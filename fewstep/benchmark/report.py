"""What a bench returns and leaves behind: ``BenchTable``, and the files of the report."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fewstep.benchmark import compare as comparing
from fewstep.benchmark.chart import chart
from fewstep.benchmark.entrants import TEACHER, UNDISTILLED
from fewstep.benchmark.rows import NON_FINITE, Row, csv_file
from fewstep.benchmark.summary import Line
from fewstep.benchmark.tables import html, markdown, measures, quality_table, time_table
from fewstep.core.suite import Suite
from fewstep.errors import FewstepError

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
    """

    folder: Path
    rows: list[Row]
    lines: list[Line]
    title: str
    tables: list[Table]
    notes: list[str]

    def show(self, console: Console) -> None:
        """Print the tables and their notes."""
        for table in self.tables:
            console.print(table)
        for note in self.notes:
            console.print(note, highlight=False, markup=False, soft_wrap=True)

    def __str__(self) -> str:
        text = io.StringIO()
        self.show(Console(file=text, width=WIDTH))
        return f"{self.title}\n{text.getvalue()}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        return f"<h4>{escape(self.title)}</h4>{''.join(map(html, self.tables))}<ul>{notes}</ul>"

    def markdown(self) -> str:
        """The text of ``table.md``."""
        tables = [f"## {table.title}\n\n{markdown(table)}\n" for table in self.tables]
        return "\n".join([f"# {self.title}\n", *tables, *(f"* {note}" for note in self.notes)]) + "\n"

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with a record for each measurement, in the columns of ``Row``.

        Raises:
            FewstepError: where pandas is not installed.
        """
        try:
            import pandas  # type: ignore[import-untyped,import-not-found,unused-ignore]
        except ImportError:
            raise FewstepError("to_pandas: needs pandas, which is not installed; run: pip install pandas") from None
        return pandas.DataFrame([asdict(row) for row in self.rows], columns=[f.name for f in fields(Row)])

    def chart(self) -> Any:
        """Quality against steps, as a PIL image."""
        return _image(self.folder / "chart.png")

    def sheet(self) -> Any:
        """Sampled objects side by side, as a PIL image."""
        return _image(self.folder / "sheet.png")


def _image(path: Path) -> Any:
    from PIL import Image

    with Image.open(path) as image:
        image.load()
        return image


def write(
    out: Path,
    suite: Suite,
    rows: list[Row],
    lines: list[Line],
    record: Mapping[str, Any],
    old: Sequence[Mapping[str, Any]] | None,
    shown: Mapping[tuple[str, int], Any],
    columns: int,
) -> BenchTable:
    """Write all files but ``rows.csv`` and ``environment.json``; tables before pictures.

    Args:
        record: the content of ``environment.json``.
        old: rows of an earlier bench to compare with.
        shown: objects for the contact sheet by (label, steps).
        columns: how many of them are shown.
    """
    tables = [quality_table(lines, suite.headline, suite.lower_is_better), time_table(lines)]
    notes = _notes(suite, lines, record)
    if old is not None:
        changes = comparing.compare(old, rows)
        with csv_file(out / "compare.csv", comparing.Change) as write_change:
            for change in changes:
                write_change(change, {})
        same = {name: str(record[name]) for name in ("backbone", "samples", "machine")}
        notes += [*comparing.unlike(old, same), comparing.verdict(changes)]
        moved = comparing.changes_table(changes)
        tables += [moved] if moved.row_count else []
    seeds = len(record["seeds"])
    title = f"{record['backbone']}: {record['samples']} held-out samples, {seeds} seed{'s' * (seeds > 1)}"
    table = BenchTable(out, rows, lines, title, tables, notes)
    with csv_file(out / "summary.csv", Line, ("low", "high")) as write_line:
        for line in lines:
            bounds = {} if line.half is None else {"low": line.value - line.half, "high": line.value + line.half}
            write_line(line, bounds)
    (out / "table.md").write_text(table.markdown(), encoding="utf-8")
    measured = measures(lines, suite.headline)
    panels = [name for name in dict.fromkeys((suite.headline, *suite.charts)) if name in measured]
    chart(lines, panels or [suite.headline], suite.lower_is_better, out / "chart.png", title)
    order = sorted(shown, key=lambda key: (key[0] != TEACHER, key[1], key[0] != UNDISTILLED))
    labels = [f"{label}, {steps} step{'s' * (steps > 1)}" for label, steps in order]
    objects = [shown[key] for key in order]
    suite.sheet(list(zip(labels, objects, strict=True)), out / "sheet.png", columns)
    return table


def _notes(suite: Suite, lines: Sequence[Line], record: Mapping[str, Any]) -> list[str]:
    """How the columns are to be read."""
    teacher = record["teacher"]["contract"]["steps"][0]
    found = [
        f"{record['machine']}; the same noise for all methods under a seed; ± is half the 95 % interval over "
        f"{len(record['seeds'])} seeds (Student's t; n/a with one seed).",
        f"gap closed: (U - S) / (U - T) of the means of {suite.headline}, S the student, U undistilled at the same "
        f"steps, T the teacher at {teacher}.",
        f"time: a sample's share of its batch, median over seeds; x flow and x whole: how many times faster than the "
        f"teacher at {teacher}, sampling alone and all stages.",
    ]
    measured = {line.metric for line in lines}
    found += [f"{names}: {text}" for names, text in suite.legend.items() if measured & set(names.split(", "))]
    if any(not line.made_for for line in lines):
        found.append("steps*: the student's contract does not name this step count.")
    broken = {line.label: line.value for line in lines if line.metric == NON_FINITE}
    return found + [
        f"{label}!: {100 * value:.0f} % of the samples were not finite, set to 0" for label, value in broken.items()
    ]
