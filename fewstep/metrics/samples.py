"""Distances between sets of low-dimensional samples: sliced Wasserstein, MMD, energy distance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.metrics.base import PerSet, vectors

DIRECTIONS = 256
_MEDIAN_ROWS = 1000


def directions(width: int, count: int = DIRECTIONS, seed: int = 0) -> Tensor:
    """At least ``count`` unit vectors [K, F] in float64, whole orthonormal frames: less scatter than free draws."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn(math.ceil(count / width), width, width, generator=generator, dtype=torch.float64)
    orthonormal: Tensor = torch.linalg.qr(frames)[0]
    return orthonormal.transpose(1, 2).reshape(-1, width)


def sliced_wasserstein(generated: Tensor, reference: Tensor, count: int = DIRECTIONS, seed: int = 0) -> float:
    """Sliced 2-Wasserstein distance of [N, F] and [M, F]: the root of the mean squared W2 over projections.

    In the units of the data, by the usual convention (no factor sqrt(F)): a set shifted by d has distance
    |d| / sqrt(F). Exact on each projection for N = M; otherwise both quantile functions are read at max(N, M)
    midpoints.

    Raises:
        FewstepError: for other shapes, no rows, or values that are not finite.
    """
    x, y = vectors(generated, reference, 1)
    axes = directions(x.shape[1], count, seed).to(x.device)
    rows = max(len(x), len(y))
    a, b = (_quantiles((z @ axes.T).sort(0).values, rows) for z in (x, y))
    return float((a - b).square().mean().sqrt())


def _quantiles(ordered: Tensor, rows: int) -> Tensor:
    """The (step) quantile function of sorted columns [N, K] at ``rows`` midpoints."""
    at = (torch.arange(rows, device=ordered.device) + 0.5) * len(ordered) / rows
    return ordered[at.long().clamp(max=len(ordered) - 1)]


def mmd_rbf(generated: Tensor, reference: Tensor, bandwidth: float | None = None) -> float:
    """Unbiased squared MMD of [N, F] and [M, F] under exp(-|a - b|^2 / (2 h^2)); around 0 for equal distributions.

    Args:
        bandwidth: h; None takes the median distance within (at most 1000 rows of) the reference, so that all sets
            compared with one reference use one kernel.

    Raises:
        FewstepError: for other shapes, fewer than 2 rows, values that are not finite, or a bandwidth not above 0.
    """
    x, y = vectors(generated, reference, 2)
    h = float(torch.pdist(y[:_MEDIAN_ROWS]).median()) if bandwidth is None else bandwidth
    if not h > 0:
        raise FewstepError(f"bandwidth: got {h}; accepted: above 0 (the median distance of the reference is 0)")
    within = sum(_mean_apart(_rbf(z, z, h), 1.0) for z in (x, y))
    return within - 2 * float(_rbf(x, y, h).mean())


def _rbf(a: Tensor, b: Tensor, bandwidth: float) -> Tensor:
    return (-0.5 * (torch.cdist(a, b) / bandwidth).square()).exp()


def energy_distance(generated: Tensor, reference: Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'| of [N, F] and [M, F], unbiased: around 0 for equal distributions.

    Raises:
        FewstepError: for other shapes, fewer than 2 rows, or values that are not finite.
    """
    x, y = vectors(generated, reference, 2)
    within = sum(_mean_apart(torch.cdist(z, z), 0.0) for z in (x, y))
    return 2 * float(torch.cdist(x, y).mean()) - within


def _mean_apart(square: Tensor, diagonal: float) -> float:
    """The mean over pairs of different rows, given what the diagonal holds."""
    n = len(square)
    return float((square.sum() - n * diagonal) / (n * (n - 1)))


class SlicedWasserstein(PerSet):
    """Sliced 2-Wasserstein distance, in units of the data."""

    name = "sliced_w2"

    def distance(self, generated: Tensor, reference: Tensor) -> float:
        return sliced_wasserstein(generated, reference)


class Mmd(PerSet):
    """Squared MMD, Gaussian kernel of the reference's median distance."""

    name = "mmd"

    def distance(self, generated: Tensor, reference: Tensor) -> float:
        return mmd_rbf(generated, reference)


class EnergyDistance(PerSet):
    """Energy distance, in units of the data."""

    name = "energy"

    def distance(self, generated: Tensor, reference: Tensor) -> float:
        return energy_distance(generated, reference)
