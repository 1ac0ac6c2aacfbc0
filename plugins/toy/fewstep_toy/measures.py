"""Distances between two clouds of points."""

from __future__ import annotations

import math

import torch
from torch import Tensor

DIRECTIONS = 64


def sliced_w2(a: Tensor, b: Tensor) -> float:
    """Sliced Wasserstein-2 distance (Bonneel et al. 2015) of clouds [N, 2] and [M, 2] over evenly spread directions.

    Quantile functions are compared at the larger cloud's ranks, so the clouds may differ in size.
    """
    angle = torch.arange(DIRECTIONS, dtype=torch.float64) * (math.pi / DIRECTIONS)
    onto = torch.stack([angle.cos(), angle.sin()])
    ranks = (torch.arange(max(len(a), len(b)), dtype=torch.float64) + 0.5) / max(len(a), len(b))
    sorted_ = [(cloud.double() @ onto).sort(0).values for cloud in (a, b)]
    quantiles = [s[(ranks * len(s)).long()] for s in sorted_]
    return float((quantiles[0] - quantiles[1]).square().mean().sqrt())


def mmd(a: Tensor, b: Tensor, scales: tuple[float, ...] = (0.1, 0.3, 1.0)) -> float:
    """Unbiased squared maximum mean discrepancy (Gretton et al. 2012), Gaussian kernels of several widths averaged.

    About 0, and on either side of it, for clouds of one density.
    """
    total = 0.0
    for scale in scales:
        aa, bb, ab = (
            torch.exp(-torch.cdist(p.double(), q.double()).square() / (2 * scale**2))
            for p, q in ((a, a), (b, b), (a, b))
        )
        within = sum(float(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in (aa, bb))
        total += within - 2 * float(ab.mean())
    return total / len(scales)
