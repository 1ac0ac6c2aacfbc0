"""Measures of many resamples of the same objects at once, for bootstrap intervals.

``counts`` [B, N] says how often each of N objects is in each of B resamples. A row of ones stands for the original
objects, and gives the value of the plain function. Object i of the reference is resampled with generated object i,
since both belong to one held-out condition. Results are [B], computed in the type of ``counts``: float64 for the
measure itself; float32, in half the time, is enough for the spread of many resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fewstep.errors import invalid
from fewstep.metrics.features import COMPONENTS, neighbours, polynomial_kernel, principal_axes
from fewstep.metrics.samples import DIRECTIONS, directions, rbf

TAILS = {"median": 0.5, "p05": 0.05, "p95": 0.95}


def mean_resampled(values: Tensor, counts: Tensor) -> Tensor:
    """[B] the mean of ``values`` [N], one per object."""
    return counts @ values.to(counts.dtype) / counts.sum(1)


def described(name: str, values: Tensor, counts: Tensor, tails: Mapping[str, float] = TAILS) -> dict[str, Tensor]:
    """The mean of ``values`` [N], one per object, as ``name``, and their quantiles: by default ``name/median``,
    ``name/p05`` and ``name/p95``. All are [B]."""
    index = torch.arange(len(values), device=values.device).repeat(len(counts))
    drawn = values.to(counts.dtype)[index.repeat_interleave(counts.flatten().long())].reshape(len(counts), -1)
    quantiles = {f"{name}/{tail}": drawn.quantile(at, 1) for tail, at in tails.items()}
    return {name: mean_resampled(values, counts), **quantiles}


def frechet_resampled(generated: Tensor, reference: Tensor, counts: Tensor, components: int = COMPONENTS) -> Tensor:
    """``frechet`` of [N, V, F] and [N, V, F] with the V rows of all objects pooled. The principal axes are those of the
    original reference."""
    x, y = _projected(generated, reference, counts, components)
    return _frechet(x, y, counts)


def frechet_gaussian_resampled(generated: Tensor, mean: Tensor, cov: Tensor, counts: Tensor) -> Tensor:
    """``frechet_gaussians`` of rows [N, F] to a known Gaussian with mean [F] and covariance [F, F]."""
    return _frechet_gaussians(*_moments(generated.to(counts.dtype)[:, None], counts), mean.to(counts), cov.to(counts))


def frechet_infinity(generated: Tensor, reference: Tensor, counts: Tensor, components: int = COMPONENTS) -> Tensor:
    """``frechet_resampled`` extrapolated to infinitely many objects. Chong and Forsyth keep the full reference; here
    both sets shrink, since both are small."""
    x, y = _projected(generated, reference, counts, components)
    return extrapolated(lambda rows, drawn: _frechet(x[rows], y[rows], drawn), counts)


def extrapolated(distance: Callable[[Tensor, Tensor], Tensor], counts: Tensor) -> Tensor:
    """[B] a distance without its bias from the number of objects, which to first order is linear in 1 / N.

    The objects are halved and quartered at random; a line is fitted to the mean distances of N, N / 2 and N / 4 objects
    against 1 / N, and its value at 0 is returned, which may be negative. Source: Chong and Forsyth 2020, arXiv
    1911.07023.

    Args:
        distance: from ``rows`` [M] and their counts [B, M], the distance [B] of these objects alone.
    """
    places = torch.randperm(counts.shape[1], generator=torch.Generator().manual_seed(0)).to(counts.device)
    divisors, distances = [], []
    for parts in (1, 2, 4):
        sets = [(places % parts == part).nonzero()[:, 0] for part in range(parts)]
        distances.append(torch.stack([distance(rows, counts[:, rows]) for rows in sets]).mean(0))
        divisors.append(float(parts))
    inverse = torch.tensor(divisors).to(counts)  # 1 / N of each, in units of that of all objects
    spread = inverse - inverse.mean()
    weights = 1 / len(inverse) - inverse.mean() * spread / spread.square().sum()  # least squares, at 1 / N = 0
    return torch.einsum("s,sb->b", weights, torch.stack(distances))


def _projected(generated: Tensor, reference: Tensor, counts: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """Both sets projected on the leading principal axes of the reference, [N, V, C]."""
    if generated.shape != reference.shape or generated.dim() != 3:
        raise invalid(
            "generated", tuple(generated.shape), f"[N, V, F] as the reference has it, {tuple(reference.shape)}"
        )
    x, y = generated.to(counts.dtype), reference.to(counts.dtype)
    mean, axes = principal_axes(y.flatten(0, 1), components)
    return (x - mean) @ axes, (y - mean) @ axes


def _frechet(x: Tensor, y: Tensor, counts: Tensor) -> Tensor:
    return _frechet_gaussians(*_moments(x, counts), *_moments(y, counts))


def _frechet_gaussians(mean_1: Tensor, cov_1: Tensor, mean_2: Tensor, cov_2: Tensor) -> Tensor:
    """Of means [B, C] and covariances [B, C, C]; the second Gaussian may be one for all, [C] and [C, C]."""
    values, columns = torch.linalg.eigh(cov_2)
    root = columns * values.clamp(min=0).sqrt()[..., None, :]  # C2 = root root^T
    inner = torch.linalg.eigvalsh(root.mT @ cov_1 @ root).clamp(min=0)
    traces = (cov_1 + cov_2).diagonal(dim1=1, dim2=2).sum(1)
    distance: Tensor = (mean_1 - mean_2).square().sum(1) + traces - 2 * inner.sqrt().sum(1)
    return distance.clamp(min=0)


def _moments(x: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Means [B, C] and covariances [B, C, C] of the rows of resampled objects [N, V, C]."""
    rows = (counts.sum(1) * x.shape[1])[:, None]
    products = torch.einsum("nvc,nvd->ncd", x, x).flatten(1)
    mean, second = counts @ x.sum(1) / rows, (counts @ products / rows).unflatten(1, (x.shape[2], -1))
    return mean, (second - mean[:, :, None] * mean[:, None]) * (rows / (rows - 1))[:, :, None]


def kid_resampled(generated: Tensor, reference: Tensor, counts: Tensor) -> Tensor:
    """``kid`` of [N, F] and [N, F] with ``paired``. Two draws of one object are left out of the means over pairs, which
    they would bias upwards."""
    x, y = generated.to(counts.dtype), reference.to(counts.dtype)
    xx, yy, xy = (_mean_of_pairs(polynomial_kernel(a, b), counts) for a, b in ((x, x), (y, y), (x, y)))
    return xx + yy - 2 * xy


def _mean_of_pairs(kernel: Tensor, counts: Tensor) -> Tensor:
    """[B] the mean of a matrix [N, N] over pairs of different objects."""
    pairs = counts.sum(1).square() - counts.square().sum(1)
    return (((counts @ kernel) * counts).sum(1) - counts.square() @ kernel.diagonal()) / pairs


def precision_recall_resampled(
    generated: Tensor, reference: Tensor, counts: Tensor, nearest: int = 3
) -> tuple[Tensor, Tensor]:
    """``precision_recall`` of [N, F] and [N, F]. The neighbourhoods are those of the original sets."""
    inside, covered = neighbours(generated, reference, nearest)
    return mean_resampled(inside, counts), mean_resampled(covered, counts)


def sliced_wasserstein_resampled(
    generated: Tensor, reference: Tensor, counts: Tensor, count: int = DIRECTIONS, seed: int = 0
) -> Tensor:
    """``sliced_wasserstein`` of resampled points [N, F] to a fixed reference [M, F] with M at least N."""
    x, y = generated.double(), reference.double()  # float32 is too coarse for sums of so many quantiles
    if len(y) < len(x):
        raise invalid("reference", len(y), f"at least as many rows as are generated, {len(x)}")
    axes = directions(x.shape[1], count, seed).to(x.device)
    ordered, order = (axes @ x.T).sort(1)  # [K, N]
    quantiles = (axes @ y.T).sort(1).values
    sums = torch.cat([quantiles.new_zeros(len(quantiles), 1), quantiles.cumsum(1)], 1)
    # The first c points of a resample are matched with the first c M / N quantiles of the reference. The transport cost
    # is summed by parts: over the gaps between neighbouring points, each times what the points below it are matched to.
    ends = (torch.arange(len(x) + 1, device=x.device) * len(y) / len(x) - 0.5).ceil().long()
    matched, shares = sums[:, ends], ends.double()
    fixed = (quantiles.square().sum(1) + len(y) * ordered[:, -1].square() - 2 * ordered[:, -1] * sums[:, -1]).mean()
    gaps, rises = ordered.diff(dim=1).flatten(), ordered.square().diff(dim=1).flatten()
    order = order[:, :-1].contiguous()
    costs = []
    for drawn in counts.long():
        below = drawn.take(order).cumsum(1)
        cross, squares = gaps @ matched.gather(1, below).flatten(), rises @ shares.take(below).flatten()
        costs.append(fixed + (2 * cross - squares) / len(axes))
    return (torch.stack(costs) / len(y)).clamp(min=0).sqrt().to(counts.dtype)


def mmd_rbf_resampled(generated: Tensor, reference: Tensor, counts: Tensor, bandwidth: float) -> Tensor:
    """``mmd_rbf`` of resampled points [N, F] to a fixed reference [M, F]."""
    x, y = generated.to(counts.dtype), reference.to(counts.dtype)
    once = counts.new_ones(1, len(y))
    cross = mean_resampled(rbf(x, y, bandwidth).mean(1), counts)
    return _mean_of_pairs(rbf(x, x, bandwidth), counts) + _mean_of_pairs(rbf(y, y, bandwidth), once) - 2 * cross
