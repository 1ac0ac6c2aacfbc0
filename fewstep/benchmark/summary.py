"""Rows summarised over seeds: means with intervals, medians of times, speed-ups, the share of the gap closed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median, stdev

from fewstep.benchmark.entrants import RESERVED, TEACHER, UNDISTILLED
from fewstep.benchmark.rows import FLOW, GAP, NON_FINITE, SECONDS, Row
from fewstep.errors import need

CONFIDENCE = 0.95
Groups = dict[tuple[str, int, str], list[Row]]  # rows by label, steps and metric


@dataclass(frozen=True)
class Line:
    """One measure of one method at one step count.

    ``value`` is the mean over seeds, for times the median; ``half`` is half the width of the 95 % interval (None: one
    seed, or a time); ``count`` is the number of seeds that have this measure.
    """

    label: str
    method: str
    steps: int
    nfe: float
    guidance: float
    sampler: str
    made_for: bool
    metric: str
    value: float
    half: float | None
    count: int

    @property
    def cell(self) -> tuple[str, int]:
        """Label and steps."""
        return self.label, self.steps


def summarise(rows: Iterable[Row], lower_is_better: frozenset[str]) -> list[Line]:
    """Lines in the order of the rows; then ``gap_closed/<measure>`` and the two speed-ups of each cell."""
    groups: Groups = {}
    for row in rows:
        groups.setdefault((row.label, row.steps, row.metric), []).append(row)
    lines = [_line(group) for group in groups.values()]
    gaps = (_gap(groups, line, line.metric in lower_is_better) for line in lines if line.label not in RESERVED)
    return [*lines, *(line for line in gaps if line is not None), *_speedups(lines)]


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
    """The share (U - S) / (U - T) of means over seeds, and half the width of its 95 % interval.

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


def _gap(groups: Groups, line: Line, lower_is_better: bool) -> Line | None:
    """The share of the gap over the seeds that student, undistilled and teacher all have."""
    teacher = next((key for key in groups if key[0] == TEACHER and key[2] == line.metric), None)
    base = (UNDISTILLED, line.steps, line.metric)
    if teacher is None or base not in groups or not is_quality(line.metric):
        return None
    keys = (base, (line.label, line.steps, line.metric), teacher)
    u, s, t = ({row.seed: row.value for row in groups[key]} for key in keys)
    seeds = [seed for seed in u if seed in s and seed in t]
    if not seeds:
        return None
    found = gap_closed([u[n] for n in seeds], [s[n] for n in seeds], [t[n] for n in seeds], lower_is_better)
    return found and replace(line, metric=GAP + line.metric, value=found[0], half=found[1], count=len(seeds))


def is_quality(metric: str) -> bool:
    """Whether a measure is one of the suite's own."""
    return not metric.startswith((SECONDS, "speedup_", GAP)) and metric != NON_FINITE


def _line(group: list[Row]) -> Line:
    first, values = group[0], [row.value for row in group]
    value, half = (median(values), None) if first.metric.startswith(SECONDS) else interval(values)
    return Line(
        first.label, first.method, first.steps, first.nfe, first.guidance, first.sampler, first.made_for,
        first.metric, value, half, len(values),
    )  # fmt: skip


def _speedups(lines: Sequence[Line]) -> list[Line]:
    """The teacher's time over that of each cell, of sampling and of all parts."""
    times: dict[tuple[str, int], list[Line]] = {}
    for line in lines:
        if line.metric.startswith(SECONDS):
            times.setdefault(line.cell, []).append(line)
    teacher = next((found for (label, _), found in times.items() if label == TEACHER), [])
    found = []
    for parts in times.values():
        for name, prefix in (("speedup_flow", FLOW), ("speedup_total", SECONDS)):
            base, own = seconds(teacher, prefix), seconds(parts, prefix)
            if base and own:
                found.append(replace(parts[0], metric=name, value=base / own, half=None))
    return found


def seconds(lines: Iterable[Line | Row], prefix: str = SECONDS) -> float:
    """The sum of the times whose name begins like this."""
    return sum(line.value for line in lines if line.metric.startswith(prefix))
