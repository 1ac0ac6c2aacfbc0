"""Values of single objects and features of their views, summarised over the objects, with bootstrap intervals.

All folders share the resampled objects, so that a difference of two folders is resampled as a difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fewstep.benchmark.resampling import estimate
from fewstep.metrics import frechet_gaussians, kid
from fewstep.metrics.resampled import (
    described,
    frechet_resampled,
    kid_resampled,
    mean_resampled,
    precision_recall_resampled,
)

MEAN, MEDIAN, WORST = "mean", "median", "worst"
WATERTIGHT = "watertight"
Key = tuple[str, str]  # measure and statistic


@dataclass(frozen=True)
class Scored:
    """What is known of one folder: ``values`` [N] by measure, and ``features`` [N, V, F] by encoder.

    For Gaussians, ``watertight`` is NaN.
    """

    values: Mapping[str, Tensor]
    features: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A statistic of a measure of one folder; ``half`` is half its 95 % interval, None if it has none."""

    label: str
    measure: str
    statistic: str
    value: float
    half: float | None
    objects: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A statistic of one folder minus that of another, ``against``, with half its 95 % interval and its p-value.

    ``better`` says whether the interval lies on the good side of 0. ``nearer`` is the share of objects for which this
    folder is better than the other (ties count half), with half its interval; only for measures of single objects.
    """

    label: str
    against: str
    measure: str
    statistic: str
    difference: float
    half: float | None
    p: float | None
    better: bool | None
    nearer: float | None = None
    nearer_half: float | None = None


def lower_is_better(measure: str) -> bool:
    """True for distances; the other measures are shares."""
    return measure.startswith(("chamfer", "frechet", "kid"))


def bad_tail(measure: str) -> tuple[str, float]:
    """Name and quantile of the statistic than which a tenth of the objects is worse."""
    return ("p90", 0.9) if lower_is_better(measure) else ("p10", 0.1)


def drawn(objects: int, resamples: int) -> Tensor:
    """How often each object is in each resample, [B, N]; a function of the two numbers only."""
    counts = np.random.default_rng(0).multinomial(objects, np.full(objects, 1 / objects), resamples)
    return torch.from_numpy(counts).float()


def resampled(scored: Scored, truth: Mapping[str, Tensor], counts: Tensor) -> dict[Key, Tensor]:
    """Every statistic on resampled objects, [B]; a row of ones gives the statistic itself."""
    found: dict[Key, Tensor] = {}
    for measure, values in scored.values.items():
        if values.isnan().any():
            continue
        if measure == WATERTIGHT:
            found[measure, MEAN] = mean_resampled(values, counts)
            continue
        tail, at = bad_tail(measure)
        tails = {MEDIAN: 0.5, tail: at, WORST: round(at)}
        for name, value in described(measure, values, counts, tails).items():
            found[measure, name.removeprefix(measure).strip("/") or MEAN] = value
    for encoder, x in scored.features.items():
        y, views = truth[encoder], x.shape[1]
        precision, recall = precision_recall_resampled(x.flatten(1), y.flatten(1), counts)
        of_views = counts.repeat_interleave(views, 1)
        found |= {
            (f"frechet32/{encoder}", "set"): frechet_resampled(x, y, counts),
            (f"kid/{encoder}", "set"): kid_resampled(x.flatten(0, 1), y.flatten(0, 1), of_views),
            (f"precision/{encoder}", "set"): precision,
            (f"recall/{encoder}", "set"): recall,
        }
    return found


def statistics(scored: Scored, truth: Mapping[str, Tensor], objects: int) -> dict[Key, float]:
    """Every statistic of the objects without resampling. Fréchet and kernel distance are as in the papers: on all
    features, with every view a row."""
    ones = torch.ones(1, objects, dtype=torch.float64)
    found = {key: float(value) for key, value in resampled(scored, truth, ones).items()}
    for encoder, x in scored.features.items():
        a, b = x.flatten(0, 1).double(), truth[encoder].flatten(0, 1).double()
        found[f"kid/{encoder}", "set"] = kid(a, b)
        axes = torch.linalg.qr(torch.cat([a, b]).T)[0]  # all rows lie in their span, which is small for few rows
        a, b = a @ axes, b @ axes
        found[f"frechet/{encoder}", "set"] = frechet_gaussians(a.mean(0), a.T.cov(), b.mean(0), b.T.cov())
    return found


def summarise(
    folders: Mapping[str, Scored], truth: Mapping[str, Tensor], objects: int, resamples: int
) -> tuple[list[Line], list[Difference]]:
    """The statistics of every folder, and the differences of all others to the first one."""
    counts = drawn(objects, resamples)
    values = {label: statistics(scored, truth, objects) for label, scored in folders.items()}
    draws = {
        label: {key: value.double().numpy() for key, value in resampled(scored, truth, counts).items()}
        for label, scored in folders.items()
    }
    lines = []
    for label, found in values.items():
        for key, value in found.items():
            half = estimate([value], draws[label].get(key), objects).half
            lines.append(Line(label=label, measure=key[0], statistic=key[1], value=value, half=half, objects=objects))
    first, *others = folders
    differences = []
    for label in others:
        for key in (key for key in values[first] if key in values[label]):
            both = [draws[one].get(key) for one in (label, first)]
            spread = None if both[0] is None or both[1] is None else both[0] - both[1]
            found_ = estimate([values[label][key] - values[first][key]], spread, objects)
            sign = -1 if lower_is_better(key[0]) else 1
            share = _nearer(folders[label], folders[first], key, counts, objects)
            differences.append(
                Difference(
                    label=label,
                    against=first,
                    measure=key[0],
                    statistic=key[1],
                    difference=found_.value,
                    half=found_.half,
                    p=found_.p,
                    better=None if found_.half is None else sign * found_.value > found_.half,
                    nearer=share[0],
                    nearer_half=share[1],
                )
            )
    return lines, differences


def _nearer(one: Scored, other: Scored, key: Key, counts: Tensor, objects: int) -> tuple[float | None, float | None]:
    """The share of objects with the better value in the first folder, with half its interval; only for medians."""
    measure, statistic = key
    if statistic != MEDIAN:
        return None, None
    sign = -1 if lower_is_better(measure) else 1
    wins = 0.5 + 0.5 * torch.sign(sign * (one.values[measure] - other.values[measure]))
    found = estimate([float(wins.mean())], mean_resampled(wins, counts).double().numpy(), objects)
    return found.value, found.half
