"""The numbers of a bench against scipy, formulas by hand and small examples."""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from fewstep_toy.config import PointsConfig, ToyConfig
from fewstep_toy.dataset import ToyPoints
from fewstep_toy.network import ToyFlow
from fewstep_toy.suite import ToySuite
from scipy import stats

from fewstep.benchmark.cells import Cells, Scorer
from fewstep.benchmark.compare import Change, compare
from fewstep.benchmark.entrants import Entrant, Model, Stage, line_up
from fewstep.benchmark.measurement import Measurement
from fewstep.benchmark.resampling import estimate
from fewstep.benchmark.rows import EarlierRow, Row
from fewstep.benchmark.sampling import ROWS, chunks
from fewstep.benchmark.summary import gap_closed
from fewstep.core.batch import Batch
from fewstep.core.contract import Contract
from fewstep.core.layout import Packed

CPU = torch.device("cpu")


def change(old: dict[int, float], new: dict[int, float]) -> Change:
    same: dict[str, Any] = {"label": "mine", "method": "m", "steps": 1, "nfe": 1.0, "guidance": 1.0}
    same |= {"sampler": "euler", "made_for": True, "metric": "w2"}
    before = [EarlierRow(label="mine", steps=1, metric="w2", seed=seed, value=value) for seed, value in old.items()]
    (found,) = compare(before, [Row(**same, seed=seed, value=value) for seed, value in new.items()])
    return found


def test_the_interval_of_a_mean_is_scipys() -> None:
    values = [3.0, 4.5, 2.0, 7.0, 4.0]
    low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    found = estimate(values)
    assert (found.value, found.half) == pytest.approx((np.mean(values), (high - low) / 2))
    assert found.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_unequal_spreads_of_unequal_numbers_are_compared_as_scipy_does() -> None:
    """Welch's degrees of freedom, 3.6 here and not 6."""
    old, new = [1.0, 9.0, 4.0, -3.0], [5.0, 5.1, 4.9, 5.2]
    found = change(dict(enumerate(old)), dict(enumerate(new, 10)))
    low, high = stats.ttest_ind(new, old, equal_var=False).confidence_interval(0.95)
    assert found.pairing == "unpaired"
    assert found.half == pytest.approx((high - low) / 2)
    assert found.difference == pytest.approx((high + low) / 2)


def test_one_seed_in_common_makes_no_pair() -> None:
    found = change({0: 1.0, 1: 2.0, 2: 3.0}, {2: 13.0, 3: 14.0, 4: 15.0})
    assert (found.pairing, found.seeds, found.difference) == ("unpaired", 3, 12.0)


def test_the_interval_of_a_share_knows_that_both_means_vary() -> None:
    """First order in both means: the deviation of c - share g over the mean of g, for seeds that share their noise."""
    u, s, t = np.array([11.0, 14.0, 10.0, 13.0]), np.array([6.0, 8.5, 5.0, 8.0]), np.array([2.0, 3.5, 1.0, 2.5])
    share, half = gap_closed(list(u), list(s), list(t), lower_is_better=True) or (0.0, None)
    gap, closed = u - t, u - s
    assert share == pytest.approx(closed.mean() / gap.mean())
    error = np.std(closed - share * gap, ddof=1) / math.sqrt(4) / gap.mean()
    assert half == pytest.approx(stats.t.ppf(0.975, 3) * error)


def test_chunks_hold_what_fits_and_never_less_than_a_sample() -> None:
    lengths = [ROWS - 1, 1, 1, ROWS + 5, ROWS // 2, ROWS // 2, 1]
    layout = Packed.of_lengths(lengths)
    found = chunks(Batch(torch.zeros(layout.rows, 1), layout))
    assert [chunk.tolist() for chunk in found] == [[0, 1], [2], [3], [4, 5], [6]]


def measured(seeds: tuple[int, ...]) -> tuple[Measurement, list[Row]]:
    """Three cells of a toy bench: the teacher in 4 steps, undistilled and a student in one."""
    torch.manual_seed(0)
    network, teacher = ToyFlow(ToyConfig(width=8)), ToyFlow.teacher(ToyConfig(pretrain=0, width=8))
    teacher.rescale_t = 3.0
    stage = Stage("", teacher, ToySuite(ToyPoints(PointsConfig(size=8, held_out=6), teacher.backbone)))
    cells = line_up([stage], [Entrant("mine", "m", (Model(network, network, Contract()),))], [1], 4)
    assert cells[0][0].models[0].contract.grid(4) == Contract(rescale_t=3.0).grid(4)  # as the backbone is sampled
    with TemporaryDirectory() as folder:
        found = Measurement([stage], seeds, None, CPU, Scorer(stage.suite, Cells(Path(folder)), seeds, 4))
        found.prepare([entrant for entrant, _ in cells])
        rows = [row for seed in seeds for row in found.cell(*cells[0], seed)] + found.teacher_rows()
        return found, rows + [row for seed in seeds for cell in cells[1:] for row in found.cell(*cell, seed)]


def test_the_objects_on_the_sheet_are_those_of_the_first_seed() -> None:
    several, alone = (measured(seeds)[0].shown for seeds in ((3, 1), (3,)))
    assert set(several) == {("teacher", 4), ("undistilled", 1), ("mine", 1)}
    assert all(torch.equal(several[key], alone[key]) for key in alone)


def test_each_seed_is_measured_against_the_teacher_of_that_seed() -> None:
    rows = [row for row in measured((3, 1))[1] if row.metric == "teacher_rms"]
    apart = {(row.label, row.seed): row.value for row in rows}
    assert apart["teacher", 3] == apart["teacher", 1] == 0
    assert min(apart["mine", 3], apart["mine", 1]) > 0


def test_an_entrants_guidance_is_the_largest_of_its_stages() -> None:
    network = ToyFlow(ToyConfig(width=8))
    models = tuple(
        Model(network, network, Contract(guidance=g, steps=steps)) for g, steps in ((1.0, (1, 2)), (3.0, (2,)))
    )
    entrant = Entrant("a", "m", models)
    assert (entrant.guidance, entrant.samplers) == (3.0, "euler")
    assert [entrant.made_for(steps) for steps in (1, 2)] == [False, True]
