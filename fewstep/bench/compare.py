"""``--compare OLD.csv``: what moved since an earlier bench."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from fewstep.bench.entrants import OTHER_NOISE, TRUTH
from fewstep.bench.grid import Cell, Grid
from fewstep.bench.rows import Row
from fewstep.bench.summary import interval, is_quality

Key = tuple[str, int, str]  # label, steps, metric


@dataclass(frozen=True)
class Moved:
    """One measure then and now. ``outside``: each mean lies outside the other's 95 % interval; None where one of the
    two had a single seed, so that nobody can tell."""

    label: str
    steps: int
    metric: str
    old: float
    old_half: float | None
    new: float
    new_half: float | None
    difference: float
    outside: bool | None


def compare(old: Sequence[Mapping[str, str]], new: Iterable[Row]) -> list[Moved]:
    """Every measure that both have, in the order of the new rows. ``old`` is as ``read_rows`` returns it."""
    before: dict[Key, list[float]] = {}
    for row in old:
        before.setdefault((row["label"], int(row["steps"]), row["metric"]), []).append(float(row["value"]))
    now: dict[Key, list[float]] = {}
    for line in new:
        now.setdefault((line.label, line.steps, line.metric), []).append(line.value)
    return [_moved(key, before[key], values) for key, values in now.items() if key in before]


def _moved(key: Key, old: Sequence[float], new: Sequence[float]) -> Moved:
    (a, a_half), (b, b_half) = interval(old), interval(new)
    if not is_quality(key[2]):  # a machine's load moves times more than seeds do: their interval would prove nothing
        a_half = b_half = None
    known = a_half is not None and b_half is not None
    outside = abs(b - a) > max(a_half or 0.0, b_half or 0.0) if known else None
    return Moved(*key, a, a_half, b, b_half, b - a, outside)


def differences(old: Sequence[Mapping[str, str]], extra: Mapping[str, str]) -> list[str]:
    """What makes the two benches unlike: another backbone, number of samples, machine or versions."""
    found = []
    for name, now in extra.items():
        then = sorted({row[name] for row in old if row.get(name)})
        if then and then != [now]:
            found.append(f"{name}: {', '.join(then)} then, {now} now")
    return found


def write_moved(moved: Iterable[Moved], path: Path) -> None:
    """``compare.csv``."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Moved)], lineterminator="\n")
        writer.writeheader()
        for one in moved:
            values = {key: "n/a" if value is None else value for key, value in asdict(one).items()}
            values["outside"] = {True: "yes", False: "no", None: "n/a"}[one.outside]
            writer.writerow(values)


def moved_table(moved: Sequence[Moved], every: bool = False) -> Grid:
    """Qualities that moved beyond both intervals, and methods' that cannot be told; ``every`` keeps all."""
    grid = Grid("what moved", ["method", "steps", "measure", "old", "new", "difference", "outside both"], _LEFT, 3)
    shown = [one for one in moved if every or _worth_showing(one)]
    grid.sections.append([[Cell(text) for text in _texts(one)] for one in shown])
    return grid


def _worth_showing(one: Moved) -> bool:
    untold = one.outside is None and one.difference != 0 and one.label not in (OTHER_NOISE, TRUTH)
    return is_quality(one.metric) and (one.outside is True or untold)


_LEFT = frozenset({"method", "measure"})


def _texts(one: Moved) -> list[str]:
    def pair(value: float, half: float | None) -> str:
        return f"{value:.4g} ±{'n/a' if half is None else f'{half:.2g}'}"

    old, new = pair(one.old, one.old_half), pair(one.new, one.new_half)
    verdict = {True: "yes", False: "no", None: "n/a"}[one.outside]
    return [one.label, str(one.steps), one.metric, old, new, f"{one.difference:+.3g}", verdict]
