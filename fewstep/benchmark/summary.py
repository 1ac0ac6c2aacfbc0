"""Rows summarised over seeds: means with intervals, medians of times, speed-ups, the share of the gap closed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from statistics import fmean, median, stdev

from fewstep.benchmark.entrants import RESERVED, TEACHER, UNDISTILLED
from fewstep.benchmark.rows import FLOW, GAP, SECONDS, Line, Measured, Row, is_quality
from fewstep.errors import need

CONFIDENCE = 0.95
Key = tuple[str, int]  # label and steps
Groups = dict[tuple[str, int, str], dict[int | None, Row]]  # by label, steps and metric, then by seed


def summarise(rows: Iterable[Row], lower_is_better: frozenset[str]) -> list[Line]:
    """Lines in the order of the rows; then ``gap_closed/<measure>`` and the two speed-ups of each cell."""
    groups: Groups = {}
    for row in rows:
        groups.setdefault((row.label, row.steps, row.metric), {})[row.seed] = row
    lines = [_line(list(group.values())) for group in groups.values()]
    gaps = (_gap(groups, line, line.metric in lower_is_better) for line in lines if line.label not in RESERVED)
    return [*lines, *(line for line in gaps if line is not None), *_speedups(lines)]


def by_cell(lines: Iterable[Line]) -> dict[Key, dict[str, Line]]:
    """Lines by label and steps, then by measure."""
    cells: dict[Key, dict[str, Line]] = {}
    for line in lines:
        cells.setdefault((line.label, line.steps), {})[line.metric] = line
    return cells


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and half the width of its 95 % confidence interval by Student's t; None with a single value."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return fmean(values), None
    return fmean(values), student_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))


def student_quantile(freedom: float) -> float:
    """Student's t that a 95 % interval reaches to, with ``freedom`` degrees of freedom."""
    return float(need("scipy.stats").t.ppf(0.5 + CONFIDENCE / 2, freedom))


def gap_closed(
    undistilled: Sequence[float], student: Sequence[float], teacher: Sequence[float], lower_is_better: bool
) -> tuple[float, float | None] | None:
    """The share of the gap between undistilled and teacher that the student closes, and half its 95 % interval.

    0 is no better than undistilled at the same steps, 1 is the teacher at its many steps. The interval is that of a
    ratio of means over paired seeds (linearised, Student's t). None where undistilled is no worse than the teacher,
    so that there is no gap.
    """
    sign = 1 if lower_is_better else -1
    gaps = [sign * (u - t) for u, t in zip(undistilled, teacher, strict=True)]
    closed = [sign * (u - s) for u, s in zip(undistilled, student, strict=True)]
    if not all(map(math.isfinite, (*gaps, *closed))) or fmean(gaps) <= 0:
        return None
    share = fmean(closed) / fmean(gaps)
    _, half = interval([c - share * g for c, g in zip(closed, gaps, strict=True)])
    return share, None if half is None else half / fmean(gaps)


def seconds(measured: Iterable[Measured], prefix: str = SECONDS) -> float:
    """The sum of the times whose name begins like this."""
    return sum(one.value for one in measured if one.metric.startswith(prefix))


def _line(group: list[Row]) -> Line:
    first, values = group[0], [row.value for row in group]
    value, half = (median(values), None) if first.metric.startswith(SECONDS) else interval(values)
    same = {f.name: getattr(first, f.name) for f in fields(Measured)}
    return Line(**{**same, "value": value, "half": half, "count": len(values)})


def _gap(groups: Groups, line: Line, lower_is_better: bool) -> Line | None:
    """The share of the gap over the seeds that student, undistilled and teacher all have."""
    teacher = next((group for key, group in groups.items() if key[0] == TEACHER and key[2] == line.metric), {})
    base, own = (groups.get((label, line.steps, line.metric), {}) for label in (UNDISTILLED, line.label))
    seeds = [seed for seed in base if seed in own and seed in teacher]
    if not seeds or not is_quality(line.metric):
        return None
    u, s, t = ([group[seed].value for seed in seeds] for group in (base, own, teacher))
    found = gap_closed(u, s, t, lower_is_better)
    return found and replace(line, metric=GAP + line.metric, value=found[0], half=found[1], count=len(seeds))


def _speedups(lines: Sequence[Line]) -> list[Line]:
    """The teacher's time over that of each cell, of sampling and of all parts."""
    cells = by_cell(line for line in lines if line.metric.startswith(SECONDS))
    teacher = next((found for (label, _), found in cells.items() if label == TEACHER), {})
    speedups = []
    for times in cells.values():
        for name, prefix in (("speedup_flow", FLOW), ("speedup_total", SECONDS)):
            base, own = seconds(teacher.values(), prefix), seconds(times.values(), prefix)
            if base and own:
                speedups.append(replace(next(iter(times.values())), metric=name, value=base / own, half=None))
    return speedups
