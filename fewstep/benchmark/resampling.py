"""Bootstrap over held-out objects: what every cell's measures would be on other draws of the objects.

A bench has two sources of variance: the trainings (with the noise each is sampled from), and the objects. The first is
the variance between replicates. The second comes from a bootstrap, in which all cells share their resampled objects, so
that a difference of two methods is resampled as a difference. ``estimate`` adds the two.
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
        """The number of objects."""
        return int(self.counts.shape[1])

    def mean(self, rows: Collection[Row | EarlierRow]) -> Array | None:
        """[B] the mean of what the rows measure; None unless all of their cells are here."""
        if not rows or not all(row.metric in self.values.get(row.cell, {}) for row in rows):
            return None
        averaged: Array = np.mean([self.values[row.cell][row.metric] for row in rows], axis=0)
        return averaged


def resample(scorer: Scorer, cells: Iterable[Cell], resamples: int, console: Console) -> Draws:
    """Resample the objects of all cells that have records. The resamples depend only on the number of objects."""
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
            values[cell] = {metric: drawn.double().numpy() for metric, drawn in scorer(cell, tensor).items()}
            if name:
                nearness[cell] = scorer.record(cell)[name].double().numpy()
    return Draws(counts, values, nearness)


@dataclass(frozen=True)
class Estimate:
    """A mean with half its 95 % interval and the p-value of its being 0; both are None if its spread is unknown."""

    value: float
    half: float | None = None
    p: float | None = None


def estimate(units: Sequence[float], draws: Array | None = None, objects: int = 0) -> Estimate:
    """The mean over units (a training and its noise), with both sources of variance.

    The variance is that of the units' mean plus that of the resampled mean, whose degrees of freedom are the number of
    objects less 1. Percentiles of a bootstrap over three or five units would be far too narrow.

    Args:
        units: the value of each unit.
        draws: [B] the mean on resampled objects.
        objects: how many were resampled.
    """
    parts = variance_of_mean(units)
    if draws is not None:
        parts.append((float(np.var(draws, ddof=1)), objects - 1))
    return welch(fmean(units), parts)


def variance_of_mean(values: Sequence[float]) -> list[tuple[float, int]]:
    """s^2 / n with its n - 1 degrees of freedom; empty for a single value."""
    return [(variance(values) / len(values), len(values) - 1)] if len(values) > 1 else []


def welch(value: float, parts: Collection[tuple[float, int]]) -> Estimate:
    """The estimate of a value from its variances and their degrees of freedom: interval and p are those of Student's t
    with the degrees of freedom of the sum (Welch and Satterthwaite)."""
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
    """Pairs of units that share their noise: for two methods with replicates those of equal numbers, else those of
    equal seeds."""
    if all(len({training for training, _ in units}) > 1 for units in (first, second)):
        return [(unit, unit) for unit in first if unit in second]
    if len(second) > len(first):
        return [(unit, other) for other, unit in matched(second, first)]
    by_seed = {unit[1]: unit for unit in second}
    return [(unit, by_seed[unit[1]]) for unit in first if unit[1] in by_seed]


def holm(values: Mapping[Any, float]) -> dict[Any, float]:
    """p-values adjusted for multiple tests, so that the probability of any false claim stays below the level.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    adjusted, largest = {}, 0.0
    for place, (key, p) in enumerate(sorted(values.items(), key=lambda item: item[1])):
        largest = max(largest, min((len(values) - place) * p, 1.0))
        adjusted[key] = largest
    return adjusted
