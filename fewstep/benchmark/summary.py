"""Summaries of rows: means with intervals, medians of times, speed-ups, the share of the gap closed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from statistics import fmean, median
from typing import TypeVar

from fewstep.benchmark.entrants import RESERVED, TEACHER, UNDISTILLED
from fewstep.benchmark.resampling import Array, Draws, estimate
from fewstep.benchmark.rows import FLOW, GAP, SECONDS, EarlierRow, Line, Measured, Row, Unit, is_quality

Key = tuple[str, int]  # label and steps
R = TypeVar("R", Row, EarlierRow)
Groups = dict[tuple[str, int, str], dict[Unit, R]]  # by label, steps and metric, then by training and seed


def summarise(rows: Iterable[Row], lower_is_better: frozenset[str], draws: Draws | None = None) -> list[Line]:
    """Lines in the order of the rows, then ``gap_closed/<measure>`` and the two speed-ups of each cell. Without
    ``draws`` of the objects, intervals are over trainings and seeds alone."""
    groups, draws = grouped(rows), draws or Draws()
    lines = [_line(list(group.values()), draws) for group in groups.values()]
    gaps = (_gap(groups, line, line.metric in lower_is_better, draws) for line in lines if line.label not in RESERVED)
    return [*lines, *(line for line in gaps if line is not None), *_speedups(lines)]


def grouped(rows: Iterable[R]) -> Groups[R]:
    """Rows by what they measure, then by training and seed."""
    groups: Groups[R] = {}
    for row in rows:
        groups.setdefault((row.label, row.steps, row.metric), {})[row.training, row.seed] = row
    return groups


def by_cell(lines: Iterable[Line]) -> dict[Key, dict[str, Line]]:
    """Lines by label and steps, then by measure."""
    cells: dict[Key, dict[str, Line]] = {}
    for line in lines:
        cells.setdefault((line.label, line.steps), {})[line.metric] = line
    return cells


def gap_closed(
    undistilled: Sequence[float],
    student: Sequence[float],
    teacher: Sequence[float],
    lower_is_better: bool,
    draws: Sequence[Array | None] = (),
    objects: int = 0,
) -> tuple[float, float | None] | None:
    """The share of the gap between undistilled and teacher that the student closes, and half its 95 % interval.

    0 is as good as undistilled at the same steps, 1 as good as the teacher at its many steps. The interval is that of a
    linearised ratio of means over paired units, by ``estimate``. None if undistilled is no worse than the teacher, so
    that there is no gap.

    Args:
        undistilled, student, teacher: the values of each unit, paired.
        draws: the means of the three on resampled objects, [B] each.
        objects: how many were resampled.
    """
    sign = 1 if lower_is_better else -1
    gaps = [sign * (u - t) for u, t in zip(undistilled, teacher, strict=True)]
    closed = [sign * (u - s) for u, s in zip(undistilled, student, strict=True)]
    if not all(map(math.isfinite, (*gaps, *closed))) or fmean(gaps) <= 0:
        return None
    share = fmean(closed) / fmean(gaps)
    u, s, t = draws or (None, None, None)
    resampled = None if u is None or s is None or t is None else sign * ((u - s) - share * (u - t))
    residual = estimate([c - share * g for c, g in zip(closed, gaps, strict=True)], resampled, objects)
    return share, None if residual.half is None else residual.half / fmean(gaps)


def seconds(measured: Iterable[Measured], prefix: str = SECONDS) -> float:
    """The sum of the times whose names begin with ``prefix``."""
    return sum(time.value for time in measured if time.metric.startswith(prefix))


def _line(group: list[Row], draws: Draws) -> Line:
    first, values = group[0], [row.value for row in group]
    if first.metric.startswith(SECONDS):
        value, half = median(values), None
    else:
        estimated = estimate(values, draws.mean(group), draws.objects)
        value, half = estimated.value, estimated.half
    same = {f.name: getattr(first, f.name) for f in fields(Measured)}
    for name in ("evaluations", "training_seconds"):  # of replicates: the mean
        took = [getattr(row, name) for row in group if getattr(row, name) is not None]
        same[name] = fmean(took) if took else None
    trainings = len({row.training for row in group} - {None})
    return Line(**{**same, "value": value, "half": half, "count": len(values), "trainings": trainings})


def _gap(groups: Groups[Row], line: Line, lower_is_better: bool, draws: Draws) -> Line | None:
    """The share of the gap closed, over the units that share their noise with undistilled and teacher."""
    if not is_quality(line.metric) or "/" in line.metric:
        return None
    teacher = next((group for key, group in groups.items() if key[0] == TEACHER and key[2] == line.metric), {})
    base, own = (groups.get((label, line.steps, line.metric), {}) for label in (UNDISTILLED, line.label))
    rows = [
        (base[None, seed], row, teacher[None, seed])
        for (_, seed), row in own.items()
        if (None, seed) in base and (None, seed) in teacher
    ]
    if not rows:
        return None
    columns = list(zip(*rows, strict=True))
    u, s, t = ([row.value for row in column] for column in columns)
    resampled = [draws.mean(column) for column in columns]
    closed = gap_closed(u, s, t, lower_is_better, resampled, draws.objects)
    return closed and replace(line, metric=GAP + line.metric, value=closed[0], half=closed[1], count=len(rows))


def _speedups(lines: Sequence[Line]) -> list[Line]:
    """The teacher's time divided by that of each cell, for sampling alone and for all parts."""
    cells = by_cell(line for line in lines if line.metric.startswith(SECONDS))
    teacher = next((cell for (label, _), cell in cells.items() if label == TEACHER), {})
    speedups = []
    for times in cells.values():
        for name, prefix in (("speedup_flow", FLOW), ("speedup_total", SECONDS)):
            base, own = seconds(teacher.values(), prefix), seconds(times.values(), prefix)
            if base and own:
                speedups.append(replace(next(iter(times.values())), metric=name, value=base / own, half=None))
    return speedups
