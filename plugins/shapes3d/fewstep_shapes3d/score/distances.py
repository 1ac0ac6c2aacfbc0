"""Distances of a generated surface to the true one, as points on both, under each alignment."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fewstep_shapes3d.score.alignment import ALIGNMENTS, Floats, align, nearest

CHAMFER, SQUARED = "chamfer", "chamfer_squared"
NOTHING = math.sqrt(3.0)  # the distance of a missing object: the cube's diagonal


def fscore_name(threshold: float) -> str:
    """``fscore@0.02``."""
    return f"fscore@{threshold:g}"


def surface_distances(
    found: Floats, truth: Floats, thresholds: Sequence[float], alignments: Sequence[str] = ALIGNMENTS
) -> dict[str, float]:
    """By ``measure/alignment``, of points [N, 3] and [M, 3]:

    ``chamfer``: half the sum of both mean distances to the nearest point; ``chamfer_squared``: the sum of both mean
    squared distances; ``fscore@t``: the harmonic mean of the share of found points within t of the true ones
    (precision) and of true points within t of the found ones (recall) (Knapitsch et al. 2017).
    """
    motions = align(found, truth, alignments)
    values: dict[str, float] = {}
    for name in alignments:
        forth, _, back, _ = nearest(motions[name](found), truth)
        values[f"{CHAMFER}/{name}"] = float(0.5 * (forth.mean() + back.mean()))
        values[f"{SQUARED}/{name}"] = float(np.square(forth).mean() + np.square(back).mean())
        for threshold in thresholds:
            precision, recall = float((forth <= threshold).mean()), float((back <= threshold).mean())
            both = precision + recall
            values[f"{fscore_name(threshold)}/{name}"] = 2 * precision * recall / both if both else 0.0
    return values


def failed_distances(thresholds: Sequence[float], alignments: Sequence[str] = ALIGNMENTS) -> dict[str, float]:
    """The same for an object that is missing, unreadable or empty: the worst possible values."""
    worst = {CHAMFER: NOTHING, SQUARED: 2 * NOTHING**2, **{fscore_name(one): 0.0 for one in thresholds}}
    return {f"{measure}/{name}": value for name in alignments for measure, value in worst.items()}
