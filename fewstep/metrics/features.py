"""Distances between sets of feature vectors: KID, and the Frechet distance on principal components."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.errors import FewstepError, invalid
from fewstep.metrics.base import PerSet, vectors

COMPONENTS = 32


def polynomial_kernel(a: Tensor, b: Tensor) -> Tensor:
    """KID's kernel (a b / F + 1)^3, [N, M] of [N, F] and [M, F] (Binkowski et al. 2018, arXiv 1801.01401)."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def kid(generated: Tensor, reference: Tensor, *, paired: bool = False) -> float:
    """Unbiased squared MMD under the polynomial kernel between [N, F] and [M, F]; around 0 (also below) if equal.

    Args:
        paired: row i of both belongs together (made from the condition of the true sample i). The pairs are then
            left out of the cross term (Gretton et al. 2012, lemma 6), which keeps the estimate unbiased; counting
            them would flatter a generator whose samples correlate with their own references.

    Raises:
        FewstepError: for other shapes, fewer than 2 rows, values that are not finite, or pairs of unequal number.
    """
    x, y = vectors(generated, reference, 2)
    if paired and len(x) != len(y):
        raise invalid("generated", len(x), f"{len(y)} rows, one for each of the reference")
    cross = polynomial_kernel(x, y)
    across = _off_diagonal_mean(cross) if paired else cross.mean()
    within = _off_diagonal_mean(polynomial_kernel(x, x)) + _off_diagonal_mean(polynomial_kernel(y, y))
    return float(within - 2 * across)


def _off_diagonal_mean(k: Tensor) -> Tensor:
    n = len(k)
    return (k.sum() - k.diagonal().sum()) / (n * (n - 1))


def frechet_gaussians(mean_1: Tensor, cov_1: Tensor, mean_2: Tensor, cov_2: Tensor) -> float:
    """Frechet (2-Wasserstein squared) distance of two Gaussians, means [F] and covariances [F, F].

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2); the roots by eigh of symmetric matrices with eigenvalues
    clamped at 0, so singular covariances are fine and nothing turns complex.

    Raises:
        FewstepError: for shapes that do not fit together.
    """
    size = mean_1.shape[-1]
    for key, x in (("mean_1", mean_1), ("mean_2", mean_2), ("cov_1", cov_1), ("cov_2", cov_2)):
        expected = (size,) if key.startswith("mean") else (size, size)
        if tuple(x.shape) != expected:
            raise invalid(key, tuple(x.shape), str(expected))
    root = _sqrt(cov_1.double())
    inner = torch.linalg.eigvalsh(_symmetric(root @ cov_2.double() @ root)).clamp(min=0)
    shift = (mean_1.double() - mean_2.double()).square().sum()
    distance = shift + cov_1.double().trace() + cov_2.double().trace() - 2 * inner.sqrt().sum()
    return max(float(distance), 0.0)


def _symmetric(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.T)


def _sqrt(matrix: Tensor) -> Tensor:
    values, vectors_ = torch.linalg.eigh(_symmetric(matrix))
    root: Tensor = (vectors_ * values.clamp(min=0).sqrt()) @ vectors_.T
    return root


def principal_axes(reference: Tensor, components: int = COMPONENTS) -> tuple[Tensor, Tensor]:
    """Mean [F] and the leading principal axes [F, k] of a reference [M, F]; k is at most M - 1 and F."""
    mean = reference.mean(0)
    _, _, rows = torch.linalg.svd(reference - mean, full_matrices=False)
    return mean, rows[: min(components, len(reference) - 1)].T


def frechet(generated: Tensor, reference: Tensor, components: int = COMPONENTS) -> float:
    """Frechet distance between [N, F] and [M, F] on the leading principal components of the reference.

    A few hundred samples cannot fill a covariance of 1280 features; of 32 components they can. Biased upward by the
    number of samples: compare equal numbers only. What the generated set does outside these axes is not seen.

    Raises:
        FewstepError: for other shapes, fewer than 2 rows, values that are not finite, or no components.
    """
    if components < 1:
        raise FewstepError(f"components: got {components}; accepted: at least 1")
    x, y = vectors(generated, reference, 2)
    mean, axes = principal_axes(y, components)
    a, b = (x - mean) @ axes, (y - mean) @ axes
    return frechet_gaussians(a.mean(0), _covariance(a), b.mean(0), _covariance(b))


def _covariance(x: Tensor) -> Tensor:
    centred = x - x.mean(0)
    return centred.T @ centred / (len(x) - 1)


class Kid(PerSet):
    """KID of features [B, F]."""

    name = "kid"

    def distance(self, generated: Tensor, reference: Tensor) -> float:
        return kid(generated, reference)


class Frechet(PerSet):
    """Frechet distance of features [B, F] on 32 principal components of the reference."""

    name = "frechet"

    def distance(self, generated: Tensor, reference: Tensor) -> float:
        return frechet(generated, reference)
