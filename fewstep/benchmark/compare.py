"""``--compare OLD.csv``: what changed since an earlier bench."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fewstep.benchmark.cells import Cells, Scorer
from fewstep.benchmark.entrants import OTHER_NOISE, TRUTH
from fewstep.benchmark.resampling import Draws, estimate, matched, resample, variance_of_mean, welch
from fewstep.benchmark.rows import EarlierRow, Row, Unit, as_text, is_quality
from fewstep.benchmark.summary import grouped
from fewstep.benchmark.tables import new_table, signed
from fewstep.errors import FewstepError
from fewstep.texts import read_text
from fewstep.words import number

ROUNDING = 1e-6  # relative; a smaller difference is float32 rounding, even if it is the same for all seeds
ALIKE = 1e-3  # tolerance for the records of true objects between machines
PAIRED, UNPAIRED, BY_OBJECT = "paired", "unpaired", "paired, objects too"


@dataclass(frozen=True)
class Change:
    """One measure in both benches.

    ``difference`` is new minus old, ``half`` half the width of its 95 % interval: that of the mean difference over
    trainings and seeds if both benches have at least two in common ("paired", over those alone), else that of the
    difference of two means (Welch). If both benches have records of the same objects, objects are paired as well
    ("paired, objects too"). ``moved`` says that the interval does not contain 0. Both are None if the spread is
    unknown, and for times, which depend on the machine's load.
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


def compare(
    old: Iterable[EarlierRow], new: Iterable[Row], draws: Draws | None = None, before: Draws | None = None
) -> list[Change]:
    """Every measure that both benches have, in the order of the new rows.

    Args:
        draws: of the new bench's objects.
        before: of the same objects in the earlier bench; None if it has no records of them.
    """
    then, pair = grouped(old), (draws or Draws(), before or Draws())
    return [_change(then[key], now, *pair) for key, now in grouped(new).items() if key in then]


def resampled(path: Path, scorer: Scorer, draws: Draws, console: Console) -> Draws | None:
    """The earlier bench in the folder of ``path`` on the resamples of the new one (``scorer``, ``draws``). None if it
    has no records, or its decoded truth shows that they are of other objects."""
    try:
        record = json.loads(read_text(path.with_name("environment.json")))
        order, steps = list(record["seeds"]), int(record["teacher"]["contract"]["steps"][0])
    except (FewstepError, ValueError, KeyError, TypeError):
        return None
    old, truth = Scorer(scorer.suite, Cells(path.parent), order, steps), (TRUTH, 0, (None, None))
    a, b = old.cells.read(truth), scorer.cells.read(truth)
    if a is None or b is None or a.keys() != b.keys():
        return None
    largest = max(a, key=lambda name: a[name].numel())  # this array describes the objects most closely
    if a[largest].shape != b[largest].shape or not torch.allclose(a[largest], b[largest], ALIKE, ALIKE):
        return None
    cells = [cell for cell in draws.values if old.cells.path(cell).is_file()]
    return resample(old, cells, len(draws.counts), console)


def _change(old: Mapping[Unit, EarlierRow], new: Mapping[Unit, Row], draws: Draws, before: Draws) -> Change:
    first = next(iter(new.values()))
    common = matched(old, new)
    a, b = before.mean([old[unit] for unit, _ in common]), draws.mean([new[unit] for _, unit in common])
    objects = None if a is None or b is None else b - a
    paired = len(common) >= 2 or len(common) == len(old) == len(new) or objects is not None
    if paired:
        x, y = [old[unit].value for unit, _ in common], [new[unit].value for _, unit in common]
        estimated = estimate([now - then for then, now in zip(x, y, strict=True)], objects, draws.objects)
    else:
        x, y = [row.value for row in old.values()], [row.value for row in new.values()]
        parts = variance_of_mean(x) + variance_of_mean(y) if min(len(x), len(y)) > 1 else []
        estimated = welch(fmean(y) - fmean(x), parts)
    half = estimated.half if is_quality(first.metric) else None
    rounding = ROUNDING * max(abs(fmean(x)), abs(fmean(y)))
    moved = abs(estimated.value) > max(half, rounding) if half is not None else None
    pairing = UNPAIRED if not paired else PAIRED if objects is None else BY_OBJECT
    values = fmean(x), fmean(y), estimated.value
    return Change(first.label, first.steps, first.metric, *values, half, pairing, len(y), moved)


def unlike(old: Sequence[EarlierRow], same: Mapping[str, Any]) -> list[str]:
    """A line for each of backbone, samples and machine in which the two benches differ."""
    notes = []
    for name, now in same.items():
        then = sorted({getattr(row, name) for row in old} - {""})
        if then and then != [str(now)]:
            notes.append(f"not the same in both: {name}: {', '.join(then)} then, {now} now")
    return notes


def changes_table(changes: Iterable[Change]) -> Table:
    """The quality measures that moved, and differences of methods that cannot be judged."""
    header = ["method", "steps", "measure", "old", "new", "difference", "pairing", "seeds", "moved"]
    table = new_table("what moved", header)
    for change in changes:
        unjudged = change.moved is None and change.difference != 0 and change.label not in (OTHER_NOISE, TRUTH)
        if is_quality(change.metric) and (change.moved or unjudged):
            values = [number(change.old), number(change.new), signed(change.difference, change.half)]
            judged = [change.pairing, str(change.seeds), as_text(change.moved)]
            table.add_row(*map(Text, (change.label, str(change.steps), change.metric, *values, *judged)))
    return table


def verdict(changes: Sequence[Change]) -> str:
    """How many measures moved, and how that was judged."""
    if not changes:
        return "nothing in common with the earlier bench: no method, steps and measure is in both"
    judged = [change for change in changes if change.moved is not None]
    unpaired, moved = sum(change.pairing == UNPAIRED for change in judged), sum(bool(change.moved) for change in judged)
    objects = any(change.pairing == BY_OBJECT for change in judged)
    paired = "differences paired by seed" + " and by object" * objects
    how = f"{len(judged) - unpaired} {paired}, {unpaired} unpaired: the seeds differ" if unpaired else paired
    return (
        f"{moved} of {len(judged)} measures moved: 0 lies outside the 95 % interval of the difference ({how}); about "
        f"5 % do so by chance. All {len(changes)} that both benches have are in compare.csv."
    )
