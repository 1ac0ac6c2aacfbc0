"""From rows to lines: means with intervals over seeds, medians of times, speed-ups, the share of the gap closed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

from scipy.stats import t as student_t  # type: ignore[import-untyped,unused-ignore]

from fewstep.bench.entrants import TEACHER
from fewstep.bench.rows import STAGES, Row

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Line:
    """One measure of one method at one step count.

    ``value`` is the mean over seeds, for times the median; ``half`` is half the 95 % interval (None: one seed, or a
    time); ``count`` the number of seeds.
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
        """What it is of: label and steps."""
        return self.label, self.steps


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half the 95 % confidence interval by Student's t; None with one value, where none can be known."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return fmean(values), None
    scale = float(student_t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1))
    return fmean(values), scale * stdev(values) / math.sqrt(len(values))


def gap_closed(undistilled: float, student: float, teacher: float, lower_is_better: bool) -> float | None:
    """(U - S) / (U - T): 0 is no better than undistilled at the same steps, 1 is the teacher at its many steps.

    None where undistilled is no worse than the teacher: there is no gap then.
    """
    gap = undistilled - teacher if lower_is_better else teacher - undistilled
    closed = undistilled - student if lower_is_better else student - undistilled
    return closed / gap if gap > 0 and math.isfinite(closed) else None


def summarise(rows: Iterable[Row]) -> list[Line]:
    """Lines in the order of the rows, then a ``speedup_flow`` and a ``speedup_total`` for each cell."""
    groups: dict[tuple[str, int, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.label, row.steps, row.metric), []).append(row)
    lines = [_line(group) for group in groups.values()]
    return lines + _speedups(lines)


def _line(group: list[Row]) -> Line:
    first, values = group[0], [row.value for row in group]
    if first.metric.startswith("seconds_"):
        value, half = median(values), None
    else:
        value, half = interval(values)
    return Line(
        first.label, first.method, first.steps, first.nfe, first.guidance, first.sampler, first.made_for,
        first.metric, value, half, len(values),
    )  # fmt: skip


def _speedups(lines: Sequence[Line]) -> list[Line]:
    """Times of the teacher over those of each cell, flow alone and all three stages."""
    times: dict[tuple[str, int], dict[str, Line]] = {}
    for line in lines:
        if line.metric.startswith("seconds_"):
            times.setdefault(line.cell, {})[line.metric] = line
    teacher = next((found for (label, _), found in times.items() if label == TEACHER), {})
    found = []
    for stages in times.values():
        flow = stages.get("seconds_flow")
        for name, wanted in (("speedup_flow", STAGES[1:2]), ("speedup_total", STAGES)):
            base, own = _seconds(teacher, wanted), _seconds(stages, wanted)
            if flow is not None and base and own:
                values = {**vars(flow), "metric": name, "value": base / own, "half": None}
                found.append(Line(**values))
    return found


def _seconds(stages: Mapping[str, Line], wanted: Sequence[str]) -> float:
    return sum(stages[f"seconds_{name}"].value for name in wanted if f"seconds_{name}" in stages)
