"""What a score returns and leaves behind: tables, CSV and JSON files, and a page."""

from __future__ import annotations

import io
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import rich.console
from rich.table import Table
from rich.text import Text

from fewstep.benchmark.rows import write_csv
from fewstep.benchmark.tables import new_table, signed
from fewstep.console import number_of, say
from fewstep.files import new_file, write_json
from fewstep.words import fixed, number
from fewstep_shapes3d.score.distances import CHAMFER, fscore_name
from fewstep_shapes3d.score.settings import Settings
from fewstep_shapes3d.score.summary import MEAN, MEDIAN, WATERTIGHT, WORST, Difference, Line, lower_is_better
from fewstep_shapes3d.score.work import EMPTY, MISSING, UNREADABLE

AGAIN = "true objects, drawn again"
WIDTH = 240  # characters of a table as plain text: nothing is folded


@dataclass(frozen=True)
class ObjectRow:
    """One object of one folder: its ``values`` by measure, ``kept``, the file of what was read, and ``status``: "ok" or
    what failed, with the ``reason``. A failed object has the worst distances."""

    label: str
    name: str
    kept: Path | None
    values: Mapping[str, float]
    status: str = "ok"
    reason: str = ""


@dataclass(frozen=True, repr=False)
class Scores:
    """What was measured. ``print`` shows it as tables.

    Attributes:
        folder: of the report: ``objects.csv``, ``summary.csv``, ``differences.csv``, ``scores.json``, ``report.html``.
        settings: how it was measured.
        objects: a row for each object, by label.
        lines: every statistic of every folder.
        differences: of every other folder to the first one.
        notes: what was not paired.
    """

    folder: Path
    settings: Settings
    objects: dict[str, list[ObjectRow]]
    truth: dict[str, Path] = field(repr=False)
    lines: list[Line]
    differences: list[Difference]
    notes: list[str]

    def value(self, label: str, measure: str, statistic: str) -> Line | None:
        """A statistic of a folder, or None if it has none."""
        return self._lines.get((label, measure, statistic))

    @cached_property
    def _lines(self) -> dict[tuple[str, str, str], Line]:
        return {(line.label, line.measure, line.statistic): line for line in self.lines}

    @property
    def labels(self) -> list[str]:
        """Labels of the generated folders."""
        return [label for label in self.objects if label != AGAIN]

    @property
    def title(self) -> str:
        """What was scored."""
        return f"{', '.join(self.labels)}: {number_of(len(self.truth), 'object')} against the true ones"

    @cached_property
    def tables(self) -> list[Table]:
        """Surfaces, files, views, differences."""
        found = [self._surfaces(), self._files(), self._views(), self._differences()]
        return [table for table in found if table.row_count]

    def _surfaces(self) -> Table:
        heads = ["median", "mean", "p90", "worst", *(f"F {one:g}" for one in self.settings.thresholds)]
        table = _table("surfaces: Chamfer distance ↓ and F-scores ↑", ["generated", "alignment", "failed", *heads])
        for label, rows in self.objects.items():
            failed = sum(row.status != "ok" for row in rows)
            for name in self.settings.align if label != AGAIN else ("unaligned",):
                distances = [self._cell(label, f"{CHAMFER}/{name}", one) for one in (MEDIAN, MEAN, "p90", WORST)]
                shares = [self._cell(label, f"{fscore_name(t)}/{name}", MEAN) for t in self.settings.thresholds]
                table.add_row(*map(Text, (label, name, str(failed))), *distances, *shares)
            table.add_section()
        return table

    def _cell(self, label: str, measure: str, statistic: str) -> Text:
        """A value with its interval; bold is the best of the folders."""
        line = self.value(label, measure, statistic)
        if line is None:
            return Text("")
        values = {other: found.value for other in self.labels if (found := self.value(other, measure, statistic))}
        best = (min if lower_is_better(measure) else max)(values.values(), default=line.value)
        text = number(line.value) + ("" if line.half is None else f" ±{number(line.half, 2)}")
        return Text(text, "bold" if len(set(values.values())) > 1 and values.get(label) == best else "")

    def _files(self) -> Table:
        kinds = (MISSING, UNREADABLE, EMPTY)
        table = _table("files", ["generated", "objects", *kinds, "watertight ↑", "parts, median", "faces, median"])
        for label in self.labels:
            rows = self.objects[label]
            counts = Counter(row.status for row in rows)
            line = self.value(label, WATERTIGHT, MEAN)
            closed = "" if line is None else f"{fixed(100 * line.value, 0)} %"
            medians = [_median(row.values[key] for row in rows) for key in ("parts", "faces")]
            table.add_row(*map(Text, (label, str(len(rows)), *(str(counts[kind]) for kind in kinds), closed, *medians)))
        return table

    def _views(self) -> Table:
        names = ("frechet", "frechet32", "kid", "precision", "recall")
        heads = [f"{name} {'↓' if lower_is_better(name) else '↑'}" for name in names]
        table = _table("views: distances of features", ["generated", "encoder", *heads])
        encoders = [line.measure.partition("/")[2] for line in self.lines if line.measure.startswith("frechet32/")]
        for label in self.labels:
            for encoder in dict.fromkeys(encoders):
                cells = [self._cell(label, f"{name}/{encoder}", "set") for name in names]
                table.add_row(Text(label), Text(encoder), *cells)
        return table

    def _differences(self) -> Table:
        first = self.labels[0]
        table = _table(
            f"differences to {first}", ["generated", "measure", "difference", "p", "verdict", "objects nearer"]
        )
        wanted = {(f"{CHAMFER}/{name}", MEDIAN) for name in self.settings.align}
        wanted |= {(f"{fscore_name(self.settings.thresholds[0])}/{name}", MEAN) for name in self.settings.align}
        for one in self.differences:
            if (one.measure, one.statistic) in wanted or (one.statistic == "set" and one.half is not None):
                what = one.measure if one.statistic == "set" else f"{one.measure}, {one.statistic}"
                p = "" if one.p is None else "<0.001" if one.p < 0.001 else fixed(one.p, 3)
                share = "" if one.nearer is None else _percent(one.nearer, one.nearer_half)
                table.add_row(*map(Text, (one.label, what, signed(one.difference, one.half), p, verdict(one), share)))
        return table

    @property
    def remarks(self) -> list[str]:
        """How to read the tables, and what was not scored."""
        own = "its own box" if self.settings.frame == "own" else "the true object's box"
        return [
            f"Chamfer: half the sum of both mean distances, in sides of the cube; each object is scaled by {own}. "
            f"{self.settings.points} points per surface, seed {self.settings.seed}.",
            f"An object that failed counts as the cube's diagonal, {number(math.sqrt(3))}, and as an F-score of 0.",
            f"{AGAIN}: other points of the same surface; no generated object can be much closer.",
            "± is half a 95 % interval over objects. The Fréchet distance of all features grows as objects get fewer: "
            "compare equal numbers only; frechet32 is that of the 32 leading components.",
            *self.notes,
            *(f"{row.label}: {row.name}: {row.status}: {row.reason}" for row in self._broken()),
        ]

    def _broken(self) -> list[ObjectRow]:
        return [row for rows in self.objects.values() for row in rows if row.status in (UNREADABLE, EMPTY)]

    def show(self, console: rich.console.Console) -> None:
        """Print the tables and how to read them."""
        for table in self.tables:
            console.print(table)
        for line in self.remarks:
            say(console, line)

    def __str__(self) -> str:
        text = io.StringIO()
        self.show(rich.console.Console(file=text, width=WIDTH))
        return f"{self.title}\n{text.getvalue()}"

    __repr__ = __str__

    def write(self) -> None:
        """Write all files of the report."""
        from fewstep_shapes3d.score.page import write_page

        self._write_csv("summary.csv", Line, map(asdict, self.lines))
        if self.differences:
            self._write_csv("differences.csv", Difference, map(asdict, self.differences))
        measures = list(
            dict.fromkeys(key for label in self.labels for row in self.objects[label] for key in row.values)
        )
        rows = [
            {"label": row.label, "name": row.name, "status": row.status, "reason": row.reason, **row.values}
            for label in self.labels
            for row in self.objects[label]
        ]
        with new_file(self.folder / "objects.csv") as path:
            write_csv(path, _ObjectHead, rows, measures)
        told = {
            "settings": self.settings.model_dump(),
            "lines": [asdict(line) for line in self.lines],
            "differences": [asdict(one) for one in self.differences],
            "objects": json.loads(json.dumps(rows).replace("NaN", "null")),
            "notes": self.remarks,
        }
        write_json(self.folder / "scores.json", told)
        write_page(self)

    def _write_csv(self, name: str, record: type, values: Iterable[Mapping[str, Any]]) -> None:
        with new_file(self.folder / name) as path:
            write_csv(path, record, values)


@dataclass(frozen=True)
class _ObjectHead:
    """The first columns of ``objects.csv``."""

    label: str
    name: str
    status: str
    reason: str


def _table(title: str, header: Sequence[str]) -> Table:
    table = new_table(title, header)
    for column in table.columns[: 2 if "alignment" in header or "encoder" in header else 1]:
        column.justify = "left"
    return table


def verdict(difference: Difference) -> str:
    """Either "better", "worse", or "not resolved" if the interval holds 0; "" without an interval."""
    if difference.better is None:
        return ""
    if abs(difference.difference) <= (difference.half or 0.0):
        return "not resolved"
    return "better" if difference.better else "worse"


def _percent(share: float, half: float | None) -> str:
    return f"{fixed(100 * share, 0)} %" + ("" if half is None else f" ±{fixed(100 * half, 0)}")


def _median(values: Iterable[float]) -> str:
    known = [value for value in values if not math.isnan(value)]
    return number(statistics.median(known)) if known else ""
