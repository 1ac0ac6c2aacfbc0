"""Held-out objects resampled: what every cell's measures would be on other draws of the objects.

A bench has two sources of chance: the trainings (and the noise each is sampled with), and the objects. The spread of
the first is seen from replicate to replicate. That of the second comes from a bootstrap, in which all cells share their
resampled objects, so that a difference of two methods is resampled as a difference. ``estimate`` adds the two.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, variance
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

from fewstep.benchmark.cells import Scorer, objects_in
from fewstep.benchmark.rows import Cell, EarlierRow, Row, Unit
from fewstep.engine.progress import counting
from fewstep.errors import need

CONFIDENCE = 0.95
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Draws:
    """Every measure of every cell on the same resamples of the objects.

    Args:
        counts: how often each of N objects is in each of B resamples, [B, N].
        values: by cell and measure, [B].
        nearness: how near each object is to the truth by the suite's ``nearness``, by cell, [N].
    """

    counts: Array = field(default_factory=lambda: np.zeros((0, 0)))
    values: Mapping[Cell, Mapping[str, Array]] = field(default_factory=dict)
    nearness: Mapping[Cell, Array] = field(default_factory=dict)

    @property
    def objects(self) -> int:
        """How many there are."""
        return int(self.counts.shape[1])

    def mean(self, rows: Collection[Row | EarlierRow]) -> Array | None:
        """Of what the rows measure, [B]; None unless all of their cells are here."""
        if not rows or not all(row.metric in self.values.get(row.cell, {}) for row in rows):
            return None
        found: Array = np.mean([self.values[row.cell][row.metric] for row in rows], axis=0)
        return found


def resample(scorer: Scorer, cells: Iterable[Cell], resamples: int, console: Console) -> Draws:
    """Resample the objects of all cells. The resamples depend on the number of objects alone."""
    cells, name = [cell for cell in cells if scorer.cells.path(cell).is_file()], scorer.suite.nearness
    values, nearness = {}, {}
    if not cells:
        return Draws()
    size = objects_in(scorer.record(cells[0]))
    counts = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), resamples).astype(np.float64)
    tensor = torch.from_numpy(counts).float()
    what = f"cells, {size} objects resampled"
    with counting(console) as count:
        for number, cell in enumerate(cells):
            count(number, len(cells), what)
            values[cell] = {metric: found.double().numpy() for metric, found in scorer(cell, tensor).items()}
            if name:
                nearness[cell] = scorer.record(cell)[name].double().numpy()
    return Draws(counts, values, nearness)


@dataclass(frozen=True)
class Estimate:
    """A mean with half its 95 % interval and the p-value that it is 0; both None where nothing tells its spread."""

    value: float
    half: float | None = None
    p: float | None = None


def estimate(units: Sequence[float], draws: Array | None = None, objects: int = 0) -> Estimate:
    """The mean of a value by unit (a training and its noise), with both sources of chance.

    Its variance is that of the units' mean, plus that of the resampled mean, with as many degrees of freedom as there
    are objects less 1. Percentiles of a bootstrap over three or five units would be far too narrow.

    Args:
        draws: the mean on resampled objects, [B].
        objects: how many were resampled.
    """
    parts = variance_of_mean(units)
    if draws is not None:
        parts.append((float(np.var(draws, ddof=1)), objects - 1))
    return welch(fmean(units), parts)


def variance_of_mean(values: Sequence[float]) -> list[tuple[float, int]]:
    """s^2 / n with its n - 1 degrees of freedom; nothing of a single value."""
    return [(variance(values) / len(values), len(values) - 1)] if len(values) > 1 else []


def welch(value: float, parts: Collection[tuple[float, int]]) -> Estimate:
    """A value by the variances in it and their degrees of freedom: interval and p are Student's, with the degrees of
    freedom of the sum (Welch and Satterthwaite)."""
    total = sum(part for part, _ in parts)
    if not parts or not math.isfinite(value) or not math.isfinite(total):
        return Estimate(value)
    if not total:
        return Estimate(value, 0.0, float(value == 0))
    freedom, error = total**2 / sum(part**2 / degrees for part, degrees in parts if part), math.sqrt(total)
    t = need("scipy.stats").t
    half = float(t.ppf(0.5 + CONFIDENCE / 2, freedom) * error)
    return Estimate(value, half, float(2 * t.sf(abs(value) / error, freedom)))


def matched(first: Collection[Unit], second: Collection[Unit]) -> list[tuple[Unit, Unit]]:
    """Units that share their noise: of two methods with replicates those of one number, else those of one seed."""
    if all(len({training for training, _ in units}) > 1 for units in (first, second)):
        return [(unit, unit) for unit in first if unit in second]
    if len(second) > len(first):
        return [(one, other) for other, one in matched(second, first)]
    by_seed = {unit[1]: unit for unit in second}
    return [(unit, by_seed[unit[1]]) for unit in first if unit[1] in by_seed]


def holm(values: Mapping[Any, float]) -> dict[Any, float]:
    """p-values adjusted for as many tests: the chance of one false claim among them stays below the level.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    found, largest = {}, 0.0
    for place, (key, p) in enumerate(sorted(values.items(), key=lambda item: item[1])):
        largest = max(largest, min((len(values) - place) * p, 1.0))
        found[key] = largest
    return found
