"""Rows summarised: means with intervals, medians of times, speed-ups, the share of the gap closed."""

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
    """Lines in the order of the rows; then ``gap_closed/<measure>`` and the two speed-ups of each cell. Without
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

    0 is no better than undistilled at the same steps, 1 is the teacher at its many steps. The interval is that of a
    ratio of means over paired units (linearised), as ``estimate`` has it. None where undistilled is no worse than the
    teacher, so that there is no gap.

    Args:
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
    found = estimate([c - share * g for c, g in zip(closed, gaps, strict=True)], resampled, objects)
    return share, None if found.half is None else found.half / fmean(gaps)


def seconds(measured: Iterable[Measured], prefix: str = SECONDS) -> float:
    """The sum of the times whose name begins like this."""
    return sum(one.value for one in measured if one.metric.startswith(prefix))


def _line(group: list[Row], draws: Draws) -> Line:
    first, values = group[0], [row.value for row in group]
    if first.metric.startswith(SECONDS):
        value, half = median(values), None
    else:
        found = estimate(values, draws.mean(group), draws.objects)
        value, half = found.value, found.half
    same = {f.name: getattr(first, f.name) for f in fields(Measured)}
    for name in ("evaluations", "training_seconds"):  # of replicates: the mean
        took = [getattr(row, name) for row in group if getattr(row, name) is not None]
        same[name] = fmean(took) if took else None
    trainings = len({row.training for row in group} - {None})
    return Line(**{**same, "value": value, "half": half, "count": len(values), "trainings": trainings})


def _gap(groups: Groups[Row], line: Line, lower_is_better: bool, draws: Draws) -> Line | None:
    """The share of the gap over the units that share their noise with undistilled and teacher."""
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
    sets = list(zip(*rows, strict=True))
    u, s, t = ([row.value for row in one] for one in sets)
    resampled = [draws.mean(one) for one in sets]
    found = gap_closed(u, s, t, lower_is_better, resampled, draws.objects)
    return found and replace(line, metric=GAP + line.metric, value=found[0], half=found[1], count=len(rows))


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
