"""Methods compared with a reference method and with the undistilled network, in equally many steps and from the same
noise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fewstep.benchmark.entrants import RESERVED, TEACHER, UNDISTILLED
from fewstep.benchmark.resampling import Draws, Estimate, estimate, holm, matched
from fewstep.benchmark.rows import FLOW, Line, Row, Unit, is_quality
from fewstep.benchmark.summary import Key, by_cell, grouped, seconds
from fewstep.core.suite import Suite

NFE, TIME = "NFE", "time"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A measure of one method minus that of another (``against``) in ``against_steps`` steps.

    ``half`` is half the 95 % interval of the difference, ``p`` its two-sided p-value, ``p_holm`` the p-value adjusted
    for all methods that are compared with the same one in equally many steps. ``count`` is the number of units that
    share their noise. ``nearer`` is the share of objects that are nearer to the truth than the other method's, by the
    suite's ``nearness``, and ``nearer_half`` half its interval; both for the headline measure alone.
    """

    label: str
    steps: int
    metric: str
    against: str
    against_steps: int
    difference: float
    half: float | None
    p: float | None
    p_holm: float | None = None
    better: bool | None
    count: int
    nearer: float | None = None
    nearer_half: float | None = None


def differences(rows: Sequence[Row], suite: Suite, draws: Draws, reference: str) -> list[Difference]:
    """Every measure of every student and step count, minus the reference method's and minus undistilled's."""
    groups = grouped(rows)
    compared = []
    for (label, steps, metric), own in groups.items():
        if label in RESERVED or not is_quality(metric):
            continue
        for against in (reference, UNDISTILLED):
            other = groups.get((against, steps, metric), {})
            if against != label and matched(own, other):
                compared.append(difference(own, other, suite, draws))
    adjusted: dict[int, float] = {}
    families: dict[tuple[str, int, str], dict[int, float]] = {}
    for place, entry in enumerate(compared):
        if entry.p is not None:
            families.setdefault((entry.against, entry.steps, entry.metric), {})[place] = entry.p
    for family in families.values():
        adjusted |= holm(family)
    return [replace(entry, p_holm=adjusted.get(place)) for place, entry in enumerate(compared)]


def at_equal_cost(
    rows: Sequence[Row], lines: Iterable[Line], suite: Suite, draws: Draws
) -> dict[Key, dict[str, Difference]]:
    """The headline measure of every student minus that of undistilled or of the teacher at equal cost, by ``NFE`` and
    by ``TIME``. They are taken at their cheapest measured step count that costs at least as much as the student, so
    that the comparison favours them."""
    groups, cells = grouped(rows), by_cell(lines)
    costs = {
        key: {NFE: next(iter(cell.values())).nfe, TIME: seconds(cell.values(), FLOW)} for key, cell in cells.items()
    }
    teachers = [key for key in cells if key[0] in (TEACHER, UNDISTILLED)]
    compared: dict[Key, dict[str, Difference]] = {}
    for key in (key for key in cells if key[0] not in RESERVED):
        own = groups.get((*key, suite.headline), {})
        for cost in (NFE, TIME):
            enough = {other: costs[other][cost] for other in teachers if costs[other][cost] >= costs[key][cost]}
            cheapest = min(enough, key=lambda other: enough[other], default=("", 0))
            other = groups.get((*cheapest, suite.headline), {})
            if matched(own, other):
                compared.setdefault(key, {})[cost] = difference(own, other, suite, draws)
    return compared


def difference(own: Mapping[Unit, Row], other: Mapping[Unit, Row], suite: Suite, draws: Draws) -> Difference:
    """One measure of two methods, unit by unit."""
    pairs = [(own[a], other[b]) for a, b in matched(own, other)]
    first, second = pairs[0]
    a, b = (draws.mean([pair[side] for pair in pairs]) for side in (0, 1))
    resampled = None if a is None or b is None else a - b
    estimated = estimate([mine.value - theirs.value for mine, theirs in pairs], resampled, draws.objects)
    sign = -1 if first.metric.partition("/")[0] in suite.lower_is_better else 1
    nearer = _nearer(pairs, suite, draws) if first.metric == suite.headline else None
    return Difference(
        label=first.label,
        steps=first.steps,
        metric=first.metric,
        against=second.label,
        against_steps=second.steps,
        difference=estimated.value,
        half=estimated.half,
        p=estimated.p,
        better=None if estimated.half is None else sign * estimated.value > estimated.half,
        count=len(pairs),
        nearer=None if nearer is None else nearer.value,
        nearer_half=None if nearer is None else nearer.half,
    )


def _nearer(pairs: Iterable[tuple[Row, Row]], suite: Suite, draws: Draws) -> Estimate | None:
    """The share of objects that are nearer to the truth than the other method's; ties count half."""
    cells = [(own.cell, other.cell) for own, other in pairs]
    if not all(cell in draws.nearness for pair in cells for cell in pair):
        return None
    sign = -1 if suite.nearness in suite.lower_is_better else 1
    wins = [0.5 + 0.5 * np.sign(sign * (draws.nearness[own] - draws.nearness[other])) for own, other in cells]
    resampled = draws.counts @ np.mean(wins, axis=0) / draws.counts.sum(1)
    return estimate([float(won.mean()) for won in wins], resampled, draws.objects)
