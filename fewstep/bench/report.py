"""What a bench leaves behind: summary.csv, table.md, chart.png, sheet.png, and the tables on the console."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from rich.console import Console

from fewstep.bench import compare as comparing
from fewstep.bench.cells import Cells
from fewstep.bench.chart import chart
from fewstep.bench.entrants import TEACHER, UNDISTILLED
from fewstep.bench.rows import NON_FINITE, Row
from fewstep.bench.summary import Line
from fewstep.bench.table import quality_table, time_table
from fewstep.core.suite import Suite


def write(out: Path, cells: Cells, lines: Sequence[Line], record: Mapping[str, Any], columns: int) -> None:
    """All files but ``rows.csv`` and ``environment.json``."""
    suite = cells.suite
    write_summary(out / "summary.csv", lines)
    quality = quality_table(lines, suite.headline, suite.lower_is_better)
    tables = [f"## {grid.title}\n\n{grid.markdown()}\n" for grid in (quality, time_table(lines))]
    text = "\n".join([f"# {title(record)}\n", *tables, *(f"* {note}" for note in notes(suite, lines, record))])
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
    panels = [suite.headline, *(name for name in suite.charts if name != suite.headline)]
    chart(lines, panels, suite.lower_is_better, out / "chart.png", title(record))
    order = sorted(cells.shown, key=lambda key: (key[0] != TEACHER, key[1], key[0] != UNDISTILLED))
    suite.sheet([(_label(*key), cells.shown[key]) for key in order], out / "sheet.png", columns)


def _label(label: str, steps: int) -> str:
    return f"{label}, {steps} step{'s' if steps > 1 else ''}"


def write_summary(path: Path, lines: Iterable[Line]) -> None:
    """One row a line: mean (times: median), interval and number of seeds; empty bounds where there is no interval."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*(f.name for f in fields(Line)), "low", "high"], lineterminator="\n")
        writer.writeheader()
        for line in lines:
            values = {**asdict(line), "made_for": "yes" if line.made_for else "no"}
            if line.half is None:
                values["half"] = "n/a"
            else:
                values.update(low=line.value - line.half, high=line.value + line.half)
            writer.writerow(values)


def show(console: Console, suite: Suite, lines: Sequence[Line], record: Mapping[str, Any]) -> None:
    """Both tables and their notes."""
    for grid in (quality_table(lines, suite.headline, suite.lower_is_better), time_table(lines)):
        for table in grid.rich(console.width):
            console.print(table)
    for note in notes(suite, lines, record):
        console.print(note, highlight=False, markup=False, soft_wrap=True)


def title(record: Mapping[str, Any]) -> str:
    """One line for tables and chart."""
    seeds = len(record["seeds"])
    return f"{record['backbone']}: {record['samples']} held-out samples, {seeds} seed{'s' if seeds > 1 else ''}"


def notes(suite: Suite, lines: Sequence[Line], record: Mapping[str, Any]) -> list[str]:
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
    found += [
        f"{label}!: {100 * value:.0f} % of the samples were not finite, set to 0" for label, value in broken.items()
    ]
    return found


def compared(
    out: Path, old: Sequence[Mapping[str, str]], rows: Iterable[Row], extra: Mapping[str, Any], console: Console
) -> None:
    """Write ``compare.csv`` and print what moved."""
    moved = comparing.compare(old, rows)
    comparing.write_moved(moved, out / "compare.csv")
    grid = comparing.moved_table(moved)
    for line in comparing.differences(old, {name: str(value) for name, value in extra.items()}):
        console.print(f"not the same in both: {line}", highlight=False, markup=False, soft_wrap=True)
    if not moved:
        console.print("nothing in common with the earlier bench: no method, steps and measure is in both")
    elif grid.sections[0]:
        for table in grid.rich(console.width):
            console.print(table)
    outside = sum(one.outside is True for one in moved)
    line = f"{outside} of {len(moved)} measures that both have moved beyond both intervals; all are in compare.csv"
    console.print(line, highlight=False, markup=False, soft_wrap=True)
