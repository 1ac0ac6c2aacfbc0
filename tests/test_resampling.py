"""Resampled measures against the plain functions on repeated objects; intervals against scipy, and what they cover."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from fewstep.benchmark.resampling import Estimate, estimate, holm
from fewstep.errors import FewstepError
from fewstep.metrics import frechet, frechet_gaussians, kid, mmd_rbf, precision_recall, sliced_wasserstein
from fewstep.metrics.resampled import (
    described,
    frechet_gaussian_resampled,
    frechet_infinity,
    frechet_resampled,
    kid_resampled,
    mean_resampled,
    mmd_rbf_resampled,
    precision_recall_resampled,
    sliced_wasserstein_resampled,
)

COUNT = 24


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def counts(size: int = COUNT, resamples: int = 3) -> Tensor:
    """The objects as they are, then resamples of them."""
    drawn = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), resamples)
    return torch.from_numpy(np.concatenate([np.ones((1, size)), drawn]))


def rows_of(drawn: Tensor) -> Tensor:
    return torch.arange(len(drawn)).repeat_interleave(drawn.long())


# Measures -------------------------------------------------------------------------------------------------------------


def test_frechet_is_that_of_the_repeated_objects() -> None:
    x, y, drawn = normal(COUNT, 2, 6), 0.5 * normal(COUNT, 2, 6, seed=1) + 0.3, counts()
    found = frechet_resampled(x, y, drawn)
    expected = [frechet(x[rows_of(one)].flatten(0, 1), y[rows_of(one)].flatten(0, 1)) for one in drawn]
    assert found.tolist() == pytest.approx(expected)  # all axes are kept, so those of a resample span the same space
    assert frechet_resampled(x, y, drawn.float()).tolist() == pytest.approx(expected, rel=1e-4)
    few = frechet_resampled(x, y, drawn[:1], 3)
    assert float(few) == pytest.approx(frechet(x.flatten(0, 1), y.flatten(0, 1), 3))


def test_frechet_to_a_known_gaussian_is_that_of_the_repeated_rows() -> None:
    x, factor, drawn = normal(COUNT, 5), normal(5, 5, seed=1), counts()
    mean, cov = normal(5, seed=2), factor @ factor.T
    expected = [frechet_gaussians(x[rows_of(one)].mean(0), x[rows_of(one)].T.cov(), mean, cov) for one in drawn]
    assert frechet_gaussian_resampled(x, mean, cov, drawn).tolist() == pytest.approx(expected)


def test_frechet_extrapolated_has_less_bias() -> None:
    """Two sets of one distribution: the distance is 0 and all that is found is bias."""
    plain, beyond = [], []
    for seed in range(12):
        x, y = normal(64, 1, 4, seed=seed), normal(64, 1, 4, seed=100 + seed)
        plain.append(float(frechet_resampled(x, y, torch.ones(1, 64).double())))
        beyond.append(float(frechet_infinity(x, y, torch.ones(1, 64).double())))
    assert np.mean(plain) > 0.1
    assert abs(np.mean(beyond)) < 0.3 * np.mean(plain)


def test_frechet_extrapolated_is_the_line_s_value_at_nothing() -> None:
    x, y, drawn = normal(32, 1, 3), normal(32, 1, 3, seed=1) + 1, counts(32, 1)
    places = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    for one, got in zip(drawn, frechet_infinity(x, y, drawn), strict=True):
        means = []
        for parts in (1, 2, 4):
            sets = [one * (places % parts == part) for part in range(parts)]
            means.append(np.mean([frechet(x[rows_of(s)].flatten(0, 1), y[rows_of(s)].flatten(0, 1)) for s in sets]))
        assert float(got) == pytest.approx(np.polyfit([1, 2, 4], means, 1)[1])


def test_kid_counts_pairs_of_different_objects() -> None:
    x, y, drawn = normal(COUNT, 5), normal(COUNT, 5, seed=1) + 0.2, counts()
    found = kid_resampled(x, y, drawn)
    assert float(found[0]) == pytest.approx(kid(x, y, paired=True))
    for one, got in zip(drawn, found, strict=True):
        rows = rows_of(one)
        other = rows[:, None] != rows

        def mean(a: Tensor, b: Tensor, rows: Tensor = rows, other: Tensor = other) -> float:
            return float(((a[rows] @ b[rows].T / 5 + 1) ** 3)[other].mean())

        assert float(got) == pytest.approx(mean(x, x) + mean(y, y) - 2 * mean(x, y))


def test_precision_and_recall_by_hand() -> None:
    truth = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    made = torch.tensor([[0.5], [9.0], [10.0], [10.5]])
    # By the nearest neighbour: 0.5 is within 1 of 0 or 1. Around 0.5 (radius 8.5), 9 (1), 10 (0.5), 10.5 (0.5) all lie.
    assert precision_recall(made, truth, 1) == (0.25, 1.0)
    assert precision_recall(torch.tensor([[6.0], [30.0]]), truth, 1) == (0.0, 1.0)  # far from the truth, and wide apart
    assert precision_recall(truth[:2] + 0.1, truth, 1) == (1.0, 0.75)  # 3 is 1.9 from 1.1, whose radius is 1
    drawn = torch.tensor([[1, 1, 1, 1], [2, 0, 1, 1], [0, 0, 0, 4]]).double()
    precision, recall = precision_recall_resampled(made, truth, drawn, 1)
    assert precision.tolist() == [0.25, 0.5, 0.0]
    assert recall.tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(FewstepError, match="at least 4"):
        precision_recall(truth[:3], truth)


def test_a_set_that_collapsed_is_precise_and_recalls_little() -> None:
    truth = normal(200, 3)
    precision, recall = precision_recall(truth[:4].repeat(50, 1), truth)
    assert precision == 1.0
    assert recall < 0.1


@pytest.mark.parametrize("size", [30, 37])
def test_sliced_wasserstein_is_that_of_the_repeated_points(size: int) -> None:
    x, y, drawn = normal(size, 2), normal(101, 2, seed=1) + 0.5, counts(size)
    found = sliced_wasserstein_resampled(x, y, drawn, 16)
    assert sliced_wasserstein_resampled(x, y, drawn.float(), 16).tolist() == pytest.approx(found.tolist(), rel=1e-6)
    expected = [sliced_wasserstein(x[rows_of(one)], y, 16) for one in drawn]
    assert found.tolist() == pytest.approx(expected)
    with pytest.raises(FewstepError, match="reference"):
        sliced_wasserstein_resampled(y, x, counts(101), 16)


def test_mmd_of_points_to_a_fixed_reference() -> None:
    x, y, drawn = normal(COUNT, 2), normal(50, 2, seed=1), counts()
    found = mmd_rbf_resampled(x, y, drawn, 0.7)
    assert float(found[0]) == pytest.approx(mmd_rbf(x, y, 0.7))

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (-(a[:, None] - b).square().sum(2) / (2 * 0.7**2)).exp()

    within = kernel(y, y)[~torch.eye(50, dtype=torch.bool)].mean()
    for one, got in zip(drawn, found, strict=True):
        rows = rows_of(one)
        other = rows[:, None] != rows
        expected = kernel(x[rows], x[rows])[other].mean() + within - 2 * kernel(x[rows], y).mean()
        assert float(got) == pytest.approx(float(expected))


def test_means_and_tails_are_numpys() -> None:
    values, drawn = normal(COUNT), counts()
    found = described("iou", values, drawn)
    assert list(found) == ["iou", "iou/median", "iou/p05", "iou/p95"]
    for index, one in enumerate(drawn):
        repeated = values[rows_of(one)].numpy()
        expected = [repeated.mean(), *np.percentile(repeated, [50, 5, 95])]
        assert [float(value[index]) for value in found.values()] == pytest.approx(expected)
    assert mean_resampled(torch.tensor([True, False]), torch.tensor([[3.0, 1.0]]).double()).tolist() == [0.75]


# Intervals ------------------------------------------------------------------------------------------------------------


def test_without_objects_it_is_student_s_t() -> None:
    values = [3.0, 4.5, 2.0, 7.0]
    found = estimate(values)
    assert found.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert estimate([3.0]) == Estimate(3.0)
    assert estimate([3.0, math.nan]).half is None
    assert estimate([2.0, 2.0]) == Estimate(2.0, 0.0, 0.0)


def test_objects_alone_give_the_interval_of_their_mean() -> None:
    values, drawn = normal(60).numpy(), counts(60, 20000)[1:].numpy()
    found = estimate([float(values.mean())], drawn @ values / 60, 60)
    error = values.std() / math.sqrt(60)
    assert found.half == pytest.approx(stats.t.ppf(0.975, 59) * error, rel=0.02)


def simulated(draw: np.random.Generator, objects: int, units: int, effects: tuple[float, float, float]) -> Estimate:
    """A measure that is a mean over objects: true value 0, with effects of trainings, objects and both together."""
    training, of_object, rest = (
        scale * draw.normal(size=shape)
        for scale, shape in zip(effects, ((units, 1), (1, objects), (units, objects)), strict=True)
    )
    values = training + of_object + rest
    drawn = draw.multinomial(objects, np.full(objects, 1 / objects), 200)
    return estimate(list(values.mean(1)), drawn @ values.mean(0) / objects, objects)


@pytest.mark.parametrize(
    ("units", "effects"), [(3, (0.1, 1.0, 0.5)), (5, (0.3, 1.0, 0.5)), (5, (0.0, 1.0, 0.0)), (3, (1.0, 0.5, 0.5))]
)
def test_intervals_cover_the_truth(units: int, effects: Any) -> None:
    """In about 95 % of all benches with three and with five trainings, whichever source of chance is the larger; a
    little less where the trainings are, from three of which the degrees of freedom are estimated."""
    draw = np.random.default_rng(1)
    found = [simulated(draw, 40, units, effects) for _ in range(800)]
    covered = np.mean([abs(one.value) <= (one.half or 0) for one in found])
    assert 0.92 <= covered <= 0.995
    assert np.mean([(one.p or 0) < 0.05 for one in found]) == pytest.approx(1 - covered, abs=0.003)


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.5, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}
