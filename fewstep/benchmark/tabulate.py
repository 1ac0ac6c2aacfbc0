"""Rows summarised in tables, with notes on how to read the columns, and a verdict on each student."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.benchmark.comparisons import LEVEL, cost_table, detail_table, difference_table, p_value, training_table
from fewstep.benchmark.differences import Difference, at_equal_cost, differences
from fewstep.benchmark.entrants import RESERVED, TEACHER, UNDISTILLED
from fewstep.benchmark.report import BenchTable
from fewstep.benchmark.resampling import Draws
from fewstep.benchmark.rows import GAP, NON_FINITE, Line, Row
from fewstep.benchmark.summary import by_cell, summarise
from fewstep.benchmark.tables import mean, quality_table, resolved, share, time_table
from fewstep.console import number_of
from fewstep.core.suite import Suite
from fewstep.words import fixed, number


def tabulate(
    folder: Path, suite: Suite, rows: list[Row], record: Mapping[str, Any], draws: Draws, reference: str
) -> BenchTable:
    """Summarise the rows in tables, with notes on how to read the columns.

    Args:
        record: the content of ``environment.json``.
        draws: resamples of the objects.
        reference: the label that the others are compared with.
    """
    lines, seeds = summarise(rows, suite.lower_is_better, draws), len(record["seeds"])
    compared = differences(rows, suite, draws, reference)
    title = f"{record['backbone']}: {number_of(record['samples'], 'held-out sample')}, {number_of(seeds, 'seed')}"
    candidates = (
        quality_table(lines, suite.headline, suite.lower_is_better),
        difference_table(compared, suite, reference),
        time_table(lines),
        cost_table(lines, at_equal_cost(rows, lines, suite, draws), suite.headline),
        detail_table(lines),
        training_table(lines, record["students"]),
    )
    tables = [table for table in candidates if table is not None]
    teacher = record["teacher"]["contract"]["steps"][0]
    notes = [
        f"{record['machine']}; all methods start from the same noise; {_interval(lines, seeds, draws)}.",
        f"gap closed: (U - S) / (U - T) of the means of {suite.headline}, S the student, U undistilled at the same "
        f"steps, T the teacher at {teacher}; not resolved: its interval is wider than the gap and holds 0.",
        "time: a sample's share of its batch, median over seeds; x flow, x whole: times faster than the teacher in "
        "sampling alone and in all parts.",
    ]
    if compared:
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
    return BenchTable(folder, rows, lines, title, tables, notes, verdicts(lines, suite, compared), compared)


def _interval(lines: Iterable[Line], seeds: int, draws: Draws) -> str:
    """What ± stands for, in words."""
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


def verdicts(lines: Sequence[Line], suite: Suite, differences: Sequence[Difference] = ()) -> list[str]:
    """``cm, 1 step: 63 % of the gap to the teacher closed (±26), 51 times faster flow; frechet 12 higher than mdt-vd
    (±5, p 0.01), worse.`` for each student."""
    cells = by_cell(lines)
    fewest: dict[str, int] = {}
    for label, steps in cells:
        if label not in RESERVED:
            fewest[label] = min(steps, fewest.get(label, steps))
    if fewest:
        compared = {(d.label, d.steps): d for d in differences
                    if d.metric == suite.headline and d.against != UNDISTILLED}  # fmt: skip
        return [
            f"{_sentence(cells[label, steps], suite, steps)}{_against(compared.get((label, steps)))}."
            for label, steps in fewest.items()
        ]
    few = min((steps for label, steps in cells if label == UNDISTILLED), default=0)
    teacher = next((cell for (label, _), cell in cells.items() if label == TEACHER), {})
    plain = cells.get((UNDISTILLED, few), {})
    if suite.headline not in teacher or suite.headline not in plain:
        return ["No student was measured."]
    better, words = mean(teacher[suite.headline]), suite.in_words(suite.headline)
    return [f"No student was measured. {words}: the teacher {better}, undistilled in {number_of(few, 'step')} "
            f"{mean(plain[suite.headline])}."]  # fmt: skip


def _sentence(cell: dict[str, Line], suite: Suite, steps: int) -> str:
    label = next(iter(cell.values())).label
    speed = f", {_faster(cell['speedup_flow'].value)} flow" if "speedup_flow" in cell else ""
    return f"{label}, {number_of(steps, 'step')}: {_closed(cell, suite)}{speed}"


def _against(difference: Difference | None) -> str:
    """How the method compares with the reference method."""
    if difference is None or not math.isfinite(difference.difference):
        return ""
    side = "higher" if difference.difference > 0 else "lower"
    text = f"; {difference.metric} {number(abs(difference.difference))} {side} than {difference.against}"
    if difference.half is None or difference.p_holm is None:
        return text
    judged = "no difference is shown" if difference.p_holm >= LEVEL else "better" if difference.better else "worse"
    return f"{text} (±{number(difference.half, 2)}, p {p_value(difference.p_holm)}), {judged}"


def _closed(cell: dict[str, Line], suite: Suite) -> str:
    line = cell.get(GAP + suite.headline)
    if NON_FINITE in cell:
        return f"{fixed(100 * cell[NON_FINITE].value, 0)} % of the samples are not finite"
    if suite.headline not in cell:
        return f"{suite.in_words(suite.headline)} was not measured"
    if line is None:
        return f"no gap to close, undistilled is no worse than the teacher ({suite.in_words(suite.headline)})"
    part = "of the gap to the teacher closed"
    if not resolved(line):
        return f"the share {part} is not resolved by {number_of(line.count, 'seed')}"
    value, _, half = share(line).partition(" ±")
    spread = f" (±{half})" if half else " (one seed, so no interval)" if line.half is None else ""
    worse = "worse than undistilled in as many steps, " if line.value + (line.half or 0) < 0 else ""
    return f"{worse}{value} {part}{spread}"


def _faster(speedup: float) -> str:
    return f"{number(speedup, 2)} times faster" if speedup >= 1 else f"{number(1 / speedup, 2)} times slower"
