"""Distances between sets of low-dimensional samples, and the agreement of paired samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewstep.errors import FewstepError, invalid

DIRECTIONS = 256
_MEDIAN_ROWS = 1000


def agreement(generated: Tensor, reference: Tensor) -> float:
    """R squared of paired samples [B, ...], such as two samplers' results from the same noise.

    1 - sum |x - y|^2 / sum |y - mean(y)|^2: identical samples give 1, the reference's mean as every sample gives 0, and
    independent samples of the same distribution give about -1.

    Raises:
        FewstepError: for different shapes or fewer than 2 samples.
    """
    if generated.shape != reference.shape or len(reference) < 2:
        raise invalid("generated", tuple(generated.shape), f"{tuple(reference.shape)}, at least 2 samples")
    x, y = generated.double(), reference.double()
    spread = (y - y.mean(0)).square().sum()
    return float(1 - (x - y).square().sum() / spread) if float(spread) > 0 else float(torch.equal(x, y))


def sliced_wasserstein(generated: Tensor, reference: Tensor, count: int = DIRECTIONS, seed: int = 0) -> float:
    """Sliced 2-Wasserstein distance of [N, F] and [M, F]: the root of the mean squared W2 over projections.

    In units of the data, without a factor sqrt(F): a set shifted by d has distance |d| / sqrt(F). Exact on each
    projection for N = M; otherwise both quantile functions are evaluated at max(N, M) midpoints. Source: Bonneel et al.
    2015, "Sliced and Radon Wasserstein barycenters of measures".

    Args:
        count: smallest number of projections. Directions come in orthonormal frames, whose estimates vary less than
            those of independent directions.
        seed: of the directions.

    Raises:
        FewstepError: for other shapes, no rows, or values that are not finite.
    """
    x, y = vectors(generated, reference, 1)
    axes = directions(x.shape[1], count, seed).to(x.device)
    rows = max(len(x), len(y))
    a, b = (_quantiles((z @ axes.T).sort(0).values, rows) for z in (x, y))
    return float((a - b).square().mean().sqrt())


def directions(width: int, count: int, seed: int) -> Tensor:
    """At least ``count`` unit vectors [K, F] in float64."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn(math.ceil(count / width), width, width, generator=generator, dtype=torch.float64)
    orthonormal: Tensor = torch.linalg.qr(frames)[0]
    return orthonormal.transpose(1, 2).reshape(-1, width)


def _quantiles(ordered: Tensor, rows: int) -> Tensor:
    """The (step) quantile function of sorted columns [N, K] at ``rows`` midpoints."""
    at = (torch.arange(rows, device=ordered.device) + 0.5) * len(ordered) / rows
    return ordered[at.long().clamp(max=len(ordered) - 1)]


def mmd_rbf(generated: Tensor, reference: Tensor, bandwidth: float | None = None) -> float:
    """Unbiased squared MMD of [N, F] and [M, F] with kernel exp(-|a - b|^2 / (2 h^2)); about 0 for equal distributions.

    Source: Gretton et al. 2012, "A kernel two-sample test", lemma 6.

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
    within = sum(mean_off_diagonal(rbf(z, z, h)) for z in (x, y))
    return within - 2 * float(rbf(x, y, h).mean())


def rbf(a: Tensor, b: Tensor, bandwidth: float) -> Tensor:
    """[N, M] the kernel exp(-|a - b|^2 / (2 h^2)) between the rows of [N, F] and [M, F]."""
    return (-0.5 * (torch.cdist(a, b) / bandwidth).square()).exp()


def mean_off_diagonal(matrix: Tensor) -> float:
    """The mean of a square matrix [N, N] without its diagonal."""
    n = len(matrix)
    return float((matrix.sum() - matrix.diagonal().sum()) / (n * (n - 1)))


def vectors(generated: Tensor, reference: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Both sets in float64.

    Raises:
        FewstepError: unless they are [N, F] and [M, F] with at least ``least`` rows, and finite.
    """
    for key, x in (("generated", generated), ("reference", reference)):
        if x.dim() != 2 or len(x) < least or x.shape[1] != reference.shape[-1]:
            raise invalid(key, tuple(x.shape), f"[N, {reference.shape[-1]}] with N at least {least}")
        if not bool(x.isfinite().all()):
            raise FewstepError(f"{key}: holds values that are not finite; accepted: finite numbers")
    return generated.double(), reference.double()
