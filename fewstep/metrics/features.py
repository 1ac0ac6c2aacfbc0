"""Distances between sets of feature vectors: KID, Fréchet distances, precision and recall."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.errors import FewstepError, invalid
from fewstep.metrics.samples import mean_off_diagonal, vectors

COMPONENTS = 32


def kid(generated: Tensor, reference: Tensor, *, paired: bool = False) -> float:
    """Kernel Inception distance: unbiased squared MMD between [N, F] and [M, F] under (a b / F + 1)^3.

    About 0 for equal distributions, and possibly negative. Source: Binkowski et al. 2018, arXiv 1801.01401.

    Args:
        paired: row i of both sets belongs to the same condition. The pairs (i, i) are then left out of the cross term
            (Gretton et al. 2012, lemma 6), which keeps the estimate unbiased; counting them would flatter a generator
            whose samples correlate with their own references.

    Raises:
        FewstepError: for other shapes, fewer than 2 rows, values that are not finite, or unequal numbers of pairs.
    """
    x, y = vectors(generated, reference, 2)
    if paired and len(x) != len(y):
        raise invalid("generated", len(x), f"{len(y)} rows, one for each of the reference")
    cross = polynomial_kernel(x, y)
    within = mean_off_diagonal(polynomial_kernel(x, x)) + mean_off_diagonal(polynomial_kernel(y, y))
    return within - 2 * (mean_off_diagonal(cross) if paired else float(cross.mean()))


def polynomial_kernel(a: Tensor, b: Tensor) -> Tensor:
    """[N, M] the kernel (a b / F + 1)^3 between the rows of [N, F] and [M, F]."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def frechet(generated: Tensor, reference: Tensor, components: int = COMPONENTS) -> float:
    """Squared Fréchet distance of Gaussians fitted to [N, F] and [M, F], projected on the leading principal components
    of the reference.

    A few hundred samples determine a covariance of 32 components, but not one of 1280 features. The estimate has an
    upward bias that depends on the number of samples: compare equal numbers only. Differences outside these components
    are not seen. Source: Heusel et al. 2017 (FID), arXiv 1706.08500.

    Raises:
        FewstepError: for other shapes, fewer than 2 rows, values that are not finite, or no components.
    """
    if components < 1:
        raise FewstepError(f"components: got {components}; accepted: at least 1")
    x, y = vectors(generated, reference, 2)
    mean, axes = principal_axes(y, components)
    a, b = (x - mean) @ axes, (y - mean) @ axes
    return frechet_gaussians(a.mean(0), _covariance(a), b.mean(0), _covariance(b))


def principal_axes(x: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """The mean [F] of rows [N, F] and their leading principal axes [F, C], C at most N - 1."""
    mean, count = x.mean(0), min(components, len(x) - 1)
    centred = x - mean
    if len(x) > x.shape[1]:
        return mean, torch.linalg.svd(centred, full_matrices=False)[2][:count].T
    _, vectors = torch.linalg.eigh(centred @ centred.T)  # far cheaper for few rows of many features
    axes: Tensor = torch.linalg.qr(centred.T @ vectors.flip(1)[:, :count])[0]
    return mean, axes


def precision_recall(generated: Tensor, reference: Tensor, nearest: int = 3) -> tuple[float, float]:
    """Precision, the share of the generated [N, F] that lies among the reference [M, F], and recall, the reverse.

    A point lies among a set if its distance to some point of the set is at most that point's distance to its
    ``nearest``-th neighbour in the set. Source: Kynkäänniemi et al. 2019, arXiv 1904.06991.

    Raises:
        FewstepError: for other shapes, values that are not finite, or not more rows than ``nearest``.
    """
    inside, covered = neighbours(*vectors(generated, reference, nearest + 1), nearest)
    return float(inside.mean()), float(covered.mean())


def neighbours(generated: Tensor, reference: Tensor, nearest: int) -> tuple[Tensor, Tensor]:
    """[N] whether each generated row lies among the reference, and [M] the reverse, as 0 and 1. In a set with fewer
    than ``nearest`` neighbours the farthest takes the place of the ``nearest``-th."""
    x, y = generated.double(), reference.double()
    apart = torch.cdist(x, y)
    x_radius, y_radius = (  # the 1st smallest distance is that of the point to itself
        torch.cdist(z, z).kthvalue(min(nearest + 1, len(z))).values for z in (x, y)
    )
    return (apart <= y_radius).any(1).double(), (apart <= x_radius[:, None]).any(0).double()


def frechet_gaussians(mean_1: Tensor, cov_1: Tensor, mean_2: Tensor, cov_2: Tensor) -> float:
    """Squared 2-Wasserstein distance of two Gaussians with means [F] and covariances [F, F].

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2). Square roots are taken of symmetric matrices by ``eigh``,
    with negative eigenvalues set to 0, so singular covariances are accepted. Source: Dowson and Landau 1982.

    Raises:
        FewstepError: for shapes that do not fit together.
    """
    size = mean_1.shape[-1]
    for key, x in (("mean_1", mean_1), ("mean_2", mean_2), ("cov_1", cov_1), ("cov_2", cov_2)):
        expected = (size,) if key.startswith("mean") else (size, size)
        if tuple(x.shape) != expected:
            raise invalid(key, tuple(x.shape), str(expected))
    root = _square_root(cov_1.double())
    inner = torch.linalg.eigvalsh(_symmetric(root @ cov_2.double() @ root)).clamp(min=0)
    shift = (mean_1.double() - mean_2.double()).square().sum()
    distance = shift + cov_1.double().trace() + cov_2.double().trace() - 2 * inner.sqrt().sum()
    return max(float(distance), 0.0)


def _symmetric(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.T)


def _square_root(matrix: Tensor) -> Tensor:
    values, columns = torch.linalg.eigh(_symmetric(matrix))
    root: Tensor = (columns * values.clamp(min=0).sqrt()) @ columns.T
    return root


def _covariance(x: Tensor) -> Tensor:
    centred = x - x.mean(0)
    return centred.T @ centred / (len(x) - 1)
