"""Quality measures against closed forms and direct loops, and that each of them can fail."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.metrics import (
    agreement,
    frechet,
    frechet_gaussians,
    kid,
    mmd_rbf,
    sliced_wasserstein,
)
from fewstep.metrics.features import principal_axes


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Features -------------------------------------------------------------------------------------------------------------


def test_frechet_of_gaussians_in_one_dimension() -> None:
    def one(x: float) -> Tensor:
        return torch.tensor([x])

    got = frechet_gaussians(one(1.0), one(4.0)[None], one(-2.0), one(9.0)[None])
    assert got == pytest.approx(3.0**2 + (2.0 - 3.0) ** 2)


def test_frechet_of_commuting_covariances() -> None:
    turn = torch.linalg.qr(normal(5, 5))[0]
    a, b = torch.tensor([1.0, 4, 0, 9, 2]).double(), torch.tensor([2.0, 1, 0, 4, 0]).double()  # singular on purpose
    mean = normal(5)
    got = frechet_gaussians(mean, turn @ a.diag() @ turn.T, torch.zeros(5), turn @ b.diag() @ turn.T)
    assert got == pytest.approx(float(mean.square().sum() + (a.sqrt() - b.sqrt()).square().sum()))


def test_frechet_of_any_covariances_against_scipy() -> None:
    from scipy.linalg import sqrtm

    a, b = (m @ m.T for m in (normal(6, 6), normal(6, 6, seed=1)))
    expected = float(a.trace() + b.trace()) - 2 * sqrtm((a @ b).numpy()).trace().real
    assert frechet_gaussians(torch.zeros(6), a, torch.zeros(6), b) == pytest.approx(expected)


def test_frechet_of_a_set_with_itself_and_shifted() -> None:
    x = normal(200, 20)
    assert frechet(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet(x + 0.5, x) == pytest.approx(20 * 0.25)  # all 20 components are kept


def test_frechet_sees_what_lies_along_the_reference_only() -> None:
    flat = normal(300, 6) @ torch.tensor([1.0, 1, 1, 0, 0, 0]).double().diag()
    aside = flat + torch.tensor([0.0, 0, 0, 0, 0, 5]).double()
    along = flat + torch.tensor([2.0, 0, 0, 0, 0, 0]).double()
    assert frechet(aside, flat, components=3) == pytest.approx(0, abs=1e-9)
    assert frechet(along, flat, components=3) == pytest.approx(4)


def test_frechet_with_fewer_samples_than_components() -> None:
    x, y = normal(5, 40), normal(5, 40, seed=1)
    assert math.isfinite(frechet(x, y))
    assert frechet(y, y) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("rows", "width"), [(20, 50), (50, 20)])
def test_principal_axes_are_those_of_an_svd_with_few_rows_and_with_many(rows: int, width: int) -> None:
    x = normal(rows, width) * torch.linspace(3, 0.1, width)
    mean, axes = principal_axes(x, 4)
    expected = torch.linalg.svd(x - x.mean(0), full_matrices=False)[2][:4]
    assert torch.allclose(mean, x.mean(0))
    assert torch.allclose((expected @ axes).abs(), torch.eye(4, dtype=x.dtype), atol=1e-8)


def test_kid_against_a_double_loop() -> None:
    x, y, n, m = normal(7, 3), normal(5, 3, seed=1) + 1, 7, 5

    def k(a: Tensor, b: Tensor) -> float:
        return (float(a @ b) / 3 + 1) ** 3

    expected = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    expected += sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    expected -= 2 * sum(k(a, b) for a in x for b in y) / (n * m)
    assert kid(x, y) == pytest.approx(expected)


def test_paired_kid_against_a_double_loop() -> None:
    x, y, n = normal(6, 3), normal(6, 3, seed=1) + 1, 6

    def k(a: Tensor, b: Tensor) -> float:
        return (float(a @ b) / 3 + 1) ** 3

    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    expected = sum(k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i]) for i, j in pairs) / len(pairs)
    assert kid(x, y, paired=True) == pytest.approx(expected)


def test_kid_is_unbiased() -> None:
    values = torch.tensor([kid(normal(30, 4, seed=i), normal(30, 4, seed=1000 + i)) for i in range(400)])
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(400)
    assert values.min() < 0 < values.max()


def test_paired_kid_is_unbiased_where_plain_kid_flatters() -> None:
    plain, paired = [], []
    for i in range(400):
        x = normal(20, 4, seed=i)
        y = 0.6 * x + 0.8 * normal(20, 4, seed=1000 + i)  # the same distribution, correlated with its partner
        plain.append(kid(x, y))
        paired.append(kid(x, y, paired=True))
    error = torch.tensor(paired).std() / math.sqrt(400)
    assert abs(torch.tensor(paired).mean()) < 3 * error
    assert torch.tensor(plain).mean() < -3 * error


# Samples --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 3, 10])
def test_sliced_wasserstein_of_a_shifted_set(width: int) -> None:
    x, shift = normal(50, width), normal(width, seed=1)
    expected = float(shift.norm()) / math.sqrt(width)  # in one dimension: the shift itself
    assert sliced_wasserstein(x + shift, x) == pytest.approx(expected)


def test_sliced_wasserstein_of_scaled_gaussians() -> None:
    a, b = normal(20000, 2), 3 * normal(20000, 2, seed=1)
    assert sliced_wasserstein(a, b) == pytest.approx(2.0, abs=0.05)  # W2 of N(0, 1) and N(0, 9) on each line


def test_sliced_wasserstein_of_repeated_sets_of_unequal_size() -> None:
    x = normal(40, 3)
    assert sliced_wasserstein(x, x.repeat(3, 1)) == pytest.approx(0, abs=1e-12)
    assert sliced_wasserstein(x.repeat(3, 1) + 1, x) == pytest.approx(1, abs=1e-12)


def test_mmd_against_a_double_loop_and_in_closed_form() -> None:
    x, y, h = normal(6, 2), normal(4, 2, seed=1) + 1, 0.7

    def k(a: Tensor, b: Tensor) -> float:
        return math.exp(-float((a - b).square().sum()) / (2 * h * h))

    expected = sum(k(x[i], x[j]) for i in range(6) for j in range(6) if i != j) / 30
    expected += sum(k(y[i], y[j]) for i in range(4) for j in range(4) if i != j) / 12
    expected -= 2 * sum(k(a, b) for a in x for b in y) / 24
    assert mmd_rbf(x, y, h) == pytest.approx(expected)
    # E k(x, y) of unit normals whose means are d apart: (h^2 / (h^2 + 2)) exp(-d^2 / (2 (h^2 + 2))) in two dimensions.
    wide = 1.0 / 3.0
    closed = 2 * wide * (1 - math.exp(-2 / 6))
    shifted = normal(4000, 2, seed=3) + 1
    assert mmd_rbf(normal(4000, 2, seed=2), shifted, 1.0) == pytest.approx(closed, rel=0.05)


@pytest.mark.parametrize("measure", [mmd_rbf])
def test_unbiased_distances_lie_around_zero(measure: Any) -> None:
    values = torch.tensor([measure(normal(30, 2, seed=i), normal(30, 2, seed=1000 + i)) for i in range(200)])
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(200)


def test_agreement() -> None:
    x = normal(500, 3, 4)
    assert agreement(x, x) == 1.0
    assert agreement(x.mean(0).expand_as(x), x) == pytest.approx(0, abs=1e-12)
    assert agreement(normal(500, 3, 4, seed=1), x) == pytest.approx(-1, abs=0.1)


# Deliberate failure, errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", [kid, frechet, sliced_wasserstein, mmd_rbf])
def test_a_collapsed_generator_is_caught(measure: Any) -> None:
    """All samples at the reference's mean, and the right mean with half the spread: both must cost plainly more."""
    reference, other = normal(300, 6), normal(300, 6, seed=1)
    honest = abs(measure(other, reference))
    collapsed = reference.mean(0).expand_as(reference) + 1e-6 * other
    assert measure(collapsed, reference) > 5 * honest
    assert measure(0.5 * other, reference) > 2 * honest


@pytest.mark.parametrize("measure", [kid, frechet, sliced_wasserstein, mmd_rbf])
def test_set_measures_refuse_bad_sets(measure: Any) -> None:
    x = normal(6, 3)
    with pytest.raises(FewstepError, match=r"generated: got \(6, 4\)"):
        measure(normal(6, 4), x)
    with pytest.raises(FewstepError, match="finite"):
        measure(x.clone().fill_(math.nan), x)


def test_parameters_out_of_range() -> None:
    x = normal(6, 3)
    with pytest.raises(FewstepError, match="components"):
        frechet(x, x, components=0)
    with pytest.raises(FewstepError, match="bandwidth"):
        mmd_rbf(x, x, bandwidth=0.0)
    with pytest.raises(FewstepError, match="one for each"):
        kid(x, x[:4], paired=True)
