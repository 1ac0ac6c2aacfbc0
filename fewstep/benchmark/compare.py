"""``--compare OLD.csv``: what changed since an earlier bench."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any

from rich.table import Table
from rich.text import Text

from fewstep.benchmark.entrants import OTHER_NOISE, TRUTH
from fewstep.benchmark.rows import Row, yes_or_no
from fewstep.benchmark.summary import interval, is_quality, student_quantile
from fewstep.benchmark.tables import new_table

Key = tuple[str, int, str]  # label, steps, metric
Values = dict[str, float]  # by seed
ROUNDING = 1e-6  # relative; a difference below it is float32 rounding, however alike it is on all seeds
PAIRED, UNPAIRED = "paired", "unpaired"


@dataclass(frozen=True)
class Change:
    """One measure in both benches.

    ``difference`` is new minus old and ``half`` half the width of its 95 % interval: of the mean difference by seed
    where two or more seeds are in both (``pairing`` "paired", over those seeds alone), else of the difference of the
    two means (Welch). ``moved``: the interval does not hold 0. None where no interval can be known: a single seed, or
    a time, which the load of the machine changes more than the seed does.
    """

    label: str
    steps: int
    metric: str
    old: float
    new: float
    difference: float
    half: float | None
    pairing: str
    seeds: int
    moved: bool | None


def compare(old: Iterable[Mapping[str, Any]], new: Iterable[Row]) -> list[Change]:
    """Every measure that both have, in the order of the new rows. ``old`` is as ``read_rows`` returns it."""
    before: dict[Key, Values] = {}
    for row in old:
        before.setdefault((row["label"], row["steps"], row["metric"]), {})[row["seed"]] = row["value"]
    now: dict[Key, Values] = {}
    for one in new:
        seed = "" if one.seed is None else str(one.seed)  # as in rows.csv
        now.setdefault((one.label, one.steps, one.metric), {})[seed] = one.value
    return [_change(key, before[key], values) for key, values in now.items() if key in before]


def _change(key: Key, old: Values, new: Values) -> Change:
    common = [seed for seed in new if seed in old]
    paired = len(common) >= 2 or old.keys() == new.keys()
    a, b = ([values[seed] for seed in (common if paired else values)] for values in (old, new))
    difference, half = interval([y - x for x, y in zip(a, b, strict=True)]) if paired else _welch(a, b)
    if not is_quality(key[2]):
        half = None
    rounding = ROUNDING * max(abs(fmean(a)), abs(fmean(b)))
    moved = abs(difference) > max(half, rounding) if half is not None else None
    pairing = PAIRED if paired else UNPAIRED
    return Change(*key, fmean(a), fmean(b), difference, half, pairing, len(b), moved)


def _welch(old: Sequence[float], new: Sequence[float]) -> tuple[float, float | None]:
    """The difference of two means, and half its 95 % interval with unequal variances (Welch 1947)."""
    difference = fmean(new) - fmean(old)
    if min(len(old), len(new)) < 2 or not all(map(math.isfinite, (*old, *new))):
        return difference, None
    parts = [(variance(values) / len(values), len(values) - 1) for values in (old, new)]
    total = sum(part for part, _ in parts)
    if not total:
        return difference, 0.0
    freedom = total**2 / sum(part**2 / degrees for part, degrees in parts)
    return difference, student_quantile(freedom) * math.sqrt(total)


def unlike(old: Sequence[Mapping[str, Any]], extra: Mapping[str, Any]) -> list[str]:
    """A line for each of backbone, samples, machine and versions in which the two benches differ."""
    found = []
    for name, now in extra.items():
        then = sorted({row[name] for row in old if row.get(name)})
        if then and then != [str(now)]:
            found.append(f"not the same in both: {name}: {', '.join(then)} then, {now} now")
    return found


def changes_table(changes: Iterable[Change]) -> Table:
    """The measures of quality that moved, and differences of methods of which nobody can tell."""
    header = ["method", "steps", "measure", "old", "new", "difference", "pairing", "seeds", "moved"]
    table = new_table("what moved", header)
    for change in changes:
        untold = change.moved is None and change.difference != 0 and change.label not in (OTHER_NOISE, TRUTH)
        if is_quality(change.metric) and (change.moved or untold):
            half = "n/a" if change.half is None else f"{change.half:.2g}"
            values = [f"{change.old:.4g}", f"{change.new:.4g}", f"{change.difference:+.3g} ±{half}"]
            judged = [change.pairing, str(change.seeds), yes_or_no(change.moved)]
            table.add_row(*map(Text, (change.label, str(change.steps), change.metric, *values, *judged)))
    return table


def verdict(changes: Sequence[Change]) -> str:
    """How many measures moved, and how that was judged."""
    if not changes:
        return "nothing in common with the earlier bench: no method, steps and measure is in both"
    told = [change for change in changes if change.moved is not None]
    paired = sum(change.pairing == PAIRED for change in told)
    how = {len(told): "differences paired by seed", 0: "differences of means, unpaired: the seeds differ"}
    text = how.get(paired, f"{paired} paired by seed, {len(told) - paired} unpaired: their seeds differ")
    moved = sum(change.moved is True for change in told)
    return (
        f"{moved} of {len(told)} measures moved: 0 lies outside the 95 % interval of the difference ({text}); about "
        f"5 % do so by chance. All {len(changes)} that both benches have are in compare.csv."
    )
