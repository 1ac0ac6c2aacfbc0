"""Rows summarised and set in tables, with notes on how to read the columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fewstep.benchmark.comparisons import LEVEL, cost_table, detail_table, difference_table, training_table
from fewstep.benchmark.differences import at_equal_cost, differences
from fewstep.benchmark.report import BenchTable
from fewstep.benchmark.resampling import Draws
from fewstep.benchmark.rows import NON_FINITE, Line, Row
from fewstep.benchmark.summary import summarise
from fewstep.benchmark.tables import quality_table, time_table
from fewstep.benchmark.verdict import verdicts
from fewstep.console import number_of
from fewstep.core.suite import Suite


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
