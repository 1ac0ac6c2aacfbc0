"""``--compare OLD.csv``: what changed since an earlier bench."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, variance
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ValidationError
from rich.table import Table
from rich.text import Text

from fewstep.benchmark.entrants import OTHER_NOISE, TRUTH
from fewstep.benchmark.rows import Row, as_text, is_quality
from fewstep.benchmark.summary import interval, student_quantile
from fewstep.benchmark.tables import new_table
from fewstep.errors import FewstepError, nearest
from fewstep.texts import read_text
from fewstep.words import number

Key = tuple[str, int, str]  # label, steps, metric
Values = dict[int | None, float]  # by seed
ROUNDING = 1e-6  # relative; a difference below it is float32 rounding, however alike it is on all seeds
PAIRED, UNPAIRED = "paired", "unpaired"


class EarlierRow(BaseModel):
    """What ``--compare`` reads of a row in ``rows.csv``."""

    label: str
    steps: int
    seed: Annotated[int | None, BeforeValidator(lambda text: None if text == "" else text)]
    metric: str
    value: float
    backbone: str = ""
    samples: str = ""
    machine: str = ""


@dataclass(frozen=True)
class Change:
    """One measure in both benches.

    ``difference`` is new minus old, ``half`` half the width of its 95 % interval: of the mean difference by seed where
    two or more seeds are in both ("paired", over those alone), else of the two means (Welch). ``moved``: the interval
    does not hold 0. Both are None for a single seed and for times, which depend on the machine's load.
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


def read_rows(path: Path) -> list[EarlierRow]:
    """The rows of an earlier ``rows.csv``.

    Raises:
        FewstepError: for a file that is missing, no CSV, empty, without a needed column, or with a value of another
            type.
    """
    key, accepted = f"--compare: {str(path)!r}", "accepted: rows.csv of an earlier bench"
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
        columns, rows = list(reader.fieldnames or ()), list(reader)
    except FewstepError as error:
        raise FewstepError(f"--compare: {error}; {accepted}") from None
    except csv.Error as error:
        raise FewstepError(f"{key}: is no CSV ({error}); {accepted}") from None
    missing = [name for name, field in EarlierRow.model_fields.items() if field.is_required() and name not in columns]
    if missing:
        hints = "".join(f"; {near!r} instead of {name!r}?" for name in missing if (near := nearest(name, columns)))
        has = ", ".join(columns) or "none, the file is empty"
        raise FewstepError(f"{key}: columns {', '.join(missing)} are missing (it has: {has}){hints}; {accepted}")
    if not rows:
        raise FewstepError(f"{key}: holds no rows; {accepted}")
    found = []
    for line, row in enumerate(rows, 2):
        try:
            found.append(EarlierRow.model_validate(row))
        except ValidationError as error:
            first = error.errors()[0]
            got = f"{first['loc'][0]} is {first['input']!r} ({first['msg']})"
            raise FewstepError(f"{key}, line {line}: {got}; {accepted}") from None
    return found


def compare(old: Iterable[EarlierRow], new: Iterable[Row]) -> list[Change]:
    """Every measure that both have, in the order of the new rows."""
    before, now = _by_seed(old), _by_seed(new)
    return [_change(key, before[key], values) for key, values in now.items() if key in before]


def _by_seed(rows: Iterable[EarlierRow] | Iterable[Row]) -> dict[Key, Values]:
    found: dict[Key, Values] = {}
    for row in rows:
        found.setdefault((row.label, row.steps, row.metric), {})[row.seed] = row.value
    return found


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


def unlike(old: Sequence[EarlierRow], same: Mapping[str, Any]) -> list[str]:
    """A line for each of backbone, samples and machine in which the two benches differ."""
    found = []
    for name, now in same.items():
        then = sorted({getattr(row, name) for row in old} - {""})
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
            spread = "" if change.half is None else f" ±{number(change.half, 2)}"
            sign = "+" if change.difference > 0 else ""
            values = [number(change.old), number(change.new), f"{sign}{number(change.difference)}{spread}"]
            judged = [change.pairing, str(change.seeds), as_text(change.moved)]
            table.add_row(*map(Text, (change.label, str(change.steps), change.metric, *values, *judged)))
    return table


def verdict(changes: Sequence[Change]) -> str:
    """How many measures moved, and how that was judged."""
    if not changes:
        return "nothing in common with the earlier bench: no method, steps and measure is in both"
    told = [change for change in changes if change.moved is not None]
    unpaired, moved = sum(change.pairing != PAIRED for change in told), sum(change.moved is True for change in told)
    how = f"{len(told) - unpaired} differences paired by seed, {unpaired} unpaired: the seeds differ"
    how = how if unpaired else "differences paired by seed"
    return (
        f"{moved} of {len(told)} measures moved: 0 lies outside the 95 % interval of the difference ({how}); about "
        f"5 % do so by chance. All {len(changes)} that both benches have are in compare.csv."
    )
