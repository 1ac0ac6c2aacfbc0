"""Differences, win rates, Holm's families, equal cost and the tables of them, on rows and draws made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import stats

from fewstep.benchmark.cells import Cells, Scorer
from fewstep.benchmark.compare import resampled
from fewstep.benchmark.comparisons import cost_table, difference_table
from fewstep.benchmark.differences import NFE, TIME, Difference, at_equal_cost, differences
from fewstep.benchmark.entrants import TRUTH
from fewstep.benchmark.resampling import Draws
from fewstep.benchmark.rows import FLOW, Cell, Row
from fewstep.benchmark.summary import gap_closed, summarise
from fewstep.benchmark.tables import markdown
from fewstep.benchmark.tabulate import verdicts

SUITE: Any = SimpleNamespace(
    headline="w2", lower_is_better={"w2"}, nearness="error", in_words=lambda name: name, signed=frozenset()
)
RESAMPLES, OBJECTS = 40, 6


def rows(label: str, steps: int, values: list[float], metric: str = "w2", **of: Any) -> list[Row]:
    """Replicates 0, 1, ... of a method, each under the seed of its number; references have no training."""
    same: dict[str, Any] = {"method": label, "guidance": 1.0, "sampler": "euler", "made_for": True, "nfe": steps, **of}
    return [
        Row(label=label, steps=steps, metric=metric, value=value, seed=number,
            training=None if label in ("teacher", "undistilled") else number, **same)
        for number, value in enumerate(values)
    ]  # fmt: skip


def draws_of(found: list[Row], nearness: dict[Cell, list[float]] | None = None, seed: int = 0) -> Draws:
    """Resamples of each row's measure, around its value."""
    random = np.random.default_rng(seed)
    counts = random.multinomial(OBJECTS, np.full(OBJECTS, 1 / OBJECTS), RESAMPLES).astype(float)
    values: dict[Cell, dict[str, Any]] = {}
    for row in found:
        values.setdefault(row.cell, {})[row.metric] = row.value + random.normal(size=RESAMPLES)
    return Draws(counts, values, {cell: np.array(near) for cell, near in (nearness or {}).items()})


def interval(units: list[float], spread: float) -> float:
    """Welch and Satterthwaite, of trainings and objects."""
    parts = {np.var(units, ddof=1) / len(units): len(units) - 1, spread: OBJECTS - 1}
    freedom = sum(parts) ** 2 / sum(part**2 / degrees for part, degrees in parts.items())
    return float(stats.t.ppf(0.975, freedom) * sum(parts) ** 0.5)


def one(found: list[Difference], label: str, against: str, steps: int = 1, metric: str = "w2") -> Difference:
    wanted = (label, against, steps, metric)
    return next(d for d in found if (d.label, d.against, d.steps, d.metric) == wanted)


def test_a_difference_takes_the_draws_of_both_sides_resample_by_resample() -> None:
    found = [*rows("a", 1, [1.0, 2.0, 4.0]), *rows("b", 1, [5.0, 7.0, 6.0])]
    draws = draws_of(found)
    got = one(differences(found, SUITE, draws, "a"), "b", "a")
    of = {row: draws.values[row.cell]["w2"] for row in found}
    apart = np.mean([of[row] for row in found[3:]], 0) - np.mean([of[row] for row in found[:3]], 0)
    assert got.difference == pytest.approx(11 / 3)
    assert got.half == pytest.approx(interval([4.0, 5.0, 2.0], np.var(apart, ddof=1)))
    assert (got.count, got.better, got.p_holm) == (3, False, got.p)


def test_objects_are_left_out_where_one_cell_lacks_the_measure() -> None:
    found = [*rows("a", 1, [1.0, 2.0, 4.0]), *rows("b", 1, [5.0, 7.0, 6.0])]
    draws = draws_of(found[:-1])
    got = one(differences(found, SUITE, draws, "a"), "b", "a")
    assert got.half == pytest.approx(stats.t.ppf(0.975, 2) * stats.sem([4.0, 5.0, 2.0]))


@pytest.mark.parametrize(("falls", "share"), [(True, [0.5, 0.0, 1.0, 0.5, 1.0, 1.0]), (False, [0.5, 1, 0, 0.5, 0, 0])])
def test_ties_count_half_in_a_win_rate_and_objects_as_often_as_they_are_drawn(falls: bool, share: list[float]) -> None:
    found = [*rows("a", 1, [3.0, 3.0]), *rows("b", 1, [2.0, 2.5])]
    near = {row.cell: [1.0, 2.0, 3.0, 4.0, 5.0, 6.0] for row in found[:2]}
    near |= {row.cell: [1.0, 9.0, 1.0, 4.0, 1.0, 1.0] for row in found[2:]}
    near[found[3].cell] = [1.0, 9.0, 1.0, 4.0, 9.0, 1.0]  # the second training of b loses an object
    suite = SimpleNamespace(**{**vars(SUITE), "lower_is_better": {"w2", "error"} if falls else {"w2"}})
    draws = draws_of(found, near)
    got = one(differences(found, suite, draws, "a"), "b", "a")
    second = [*share[:4], 1 - share[4], share[5]]
    assert got.nearer == pytest.approx(np.mean([share, second]))
    resampled = draws.counts @ np.mean([share, second], 0) / OBJECTS
    assert got.nearer_half == pytest.approx(interval([np.mean(share), np.mean(second)], np.var(resampled, ddof=1)))


def test_p_values_are_adjusted_among_the_methods_of_one_step_count_reference_and_measure() -> None:
    values = {"a": [1.0, 2.0, 3.0], "b": [2.0, 4.5, 4.0], "c": [6.0, 9.0, 7.0], "undistilled": [9.0, 9.5, 9.1]}
    found = [row for name, three in values.items() for row in rows(name, 1, three)]
    found += [row for name, three in values.items() for row in rows(name, 2, [2 * value for value in three[::-1]])]
    found += [row for name, three in values.items() for row in rows(name, 1, three, "agree")]
    got = differences(found, SUITE, Draws(), "a")
    for steps in (1, 2):
        b, c = (one(got, name, "a", steps) for name in "bc")
        small, large = sorted([b.p or 0, c.p or 0])
        assert sorted([b.p_holm, c.p_holm]) == pytest.approx([2 * small, max(2 * small, large)])
        three = [one(got, name, "undistilled", steps) for name in "abc"]
        assert min(d.p_holm or 0 for d in three) == pytest.approx(3 * min(d.p or 0 for d in three))


def test_better_is_beyond_the_interval_and_on_the_better_side() -> None:
    cases = {"w2": [[5.0, 6.0, 7.0], [1.0, 2.2, 2.9]], "w2/p95": [[5.0, 6.0, 7.0], [1.0, 2.2, 2.9]],
             "agree": [[5.0, 6.0, 7.0], [1.0, 2.2, 2.9]], "w2/median": [[5.0, 6.0, 7.0], [4.0, 8.0, 5.0]]}  # fmt: skip
    found = [row for metric, (a, b) in cases.items() for row in (*rows("a", 1, a, metric), *rows("b", 1, b, metric))]
    got = differences(found, SUITE, Draws(), "a")
    better = {metric: one(got, "b", "a", metric=metric).better for metric in cases}
    assert better == {"w2": True, "w2/p95": True, "agree": False, "w2/median": False}


def test_the_share_of_the_gap_is_resampled_as_a_ratio_of_the_same_resamples() -> None:
    u, s, t = [11.0, 14.0, 10.0], [6.0, 8.5, 5.0], [2.0, 3.5, 1.0]
    draws = [np.mean(one) + np.random.default_rng(seed).normal(size=RESAMPLES) for seed, one in enumerate((u, s, t))]
    share, half = gap_closed(u, s, t, lower_is_better=True, draws=draws, objects=OBJECTS) or (0.0, None)
    gaps, closed = np.subtract(u, t), np.subtract(u, s)
    rest = (draws[0] - draws[1]) - share * (draws[0] - draws[2])
    assert share == pytest.approx(closed.mean() / gaps.mean())
    assert half == pytest.approx(interval(list(closed - share * gaps), np.var(rest, ddof=1)) / gaps.mean())
    turned = gap_closed(*(list(np.negative(one)) for one in (u, s, t)), False, [-one for one in draws], OBJECTS)
    assert turned == pytest.approx((share, half))


# Equal cost -----------------------------------------------------------------------------------------------------------


def costly() -> list[Row]:
    """Undistilled in 1, 2 and 4 steps of two evaluations, the teacher in 25; students in 4 steps of one evaluation, of
    which "slow" takes longer than any undistilled row. Nothing costs as much as "costly"."""
    found = rows("teacher", 25, [1.0, 1.2], nfe=50.0) + rows("teacher", 25, [0.050, 0.050], FLOW, nfe=50.0)
    for steps, seconds in ((1, 0.002), (2, 0.005), (4, 0.004)):  # evaluations and times need not agree
        found += rows("undistilled", steps, [9.0 / steps, 9.3 / steps], nfe=2.0 * steps)
        found += rows("undistilled", steps, [seconds, seconds], FLOW, nfe=2.0 * steps)
    found += rows("costly", 4, [2.0, 2.2], nfe=60.0) + rows("costly", 4, [1.0, 1.0], FLOW, nfe=60.0)
    for label, seconds in (("quick", 0.003), ("slow", 0.020)):
        found += rows(label, 4, [2.0, 2.2], nfe=4.0) + rows(label, 4, [seconds, seconds], FLOW, nfe=4.0)
    return found


def test_equal_cost_is_the_cheapest_that_costs_no_less() -> None:
    found = at_equal_cost(costly(), summarise(costly(), SUITE.lower_is_better), SUITE, Draws())
    against = {
        (key[0], cost): (d.against, d.against_steps) for key, costs in found.items() for cost, d in costs.items()
    }
    assert against == {
        ("quick", NFE): ("undistilled", 2),  # of 4 evaluations, as many as the student
        ("quick", TIME): ("undistilled", 4),  # of 4 ms, the next to 3
        ("slow", NFE): ("undistilled", 2),
        ("slow", TIME): ("teacher", 25),
    }
    assert found["slow", 4][TIME].difference == pytest.approx(1.0)
    assert found["slow", 4][NFE].difference == pytest.approx(2.1 - 9.15 / 2)


def test_the_table_of_equal_cost_names_what_each_is_compared_with() -> None:
    lines = summarise(costly(), SUITE.lower_is_better)
    found = at_equal_cost(costly(), lines, SUITE, Draws())
    table = cost_table(lines, found, "w2")
    assert table is not None
    slow = markdown(table).splitlines()[-1].split(" | ")
    assert slow[:4] == ["| slow", "4", "4", "20.0"]
    assert (slow[4], slow[6]) == ("undistilled, 2 steps: 4", "teacher, 25 steps: 50.0 ms")
    assert (slow[5][:5], slow[7][:5]) == ("-2.48", "+1.00")


# Tables and verdicts --------------------------------------------------------------------------------------------------


def made(difference: float, half: float | None, p: float | None, holm: float | None, better: bool | None) -> Difference:
    return Difference(label="b", steps=1, metric="w2", against="a", against_steps=1, difference=difference, half=half,
                      p=p, p_holm=holm, better=better, count=3, nearer=0.75, nearer_half=0.125)  # fmt: skip


@pytest.mark.parametrize(
    ("found", "row", "side", "judged"),
    [
        (made(-2.0, 0.5, 0.0004, 0.0008, True), "**-2.00 ±0.50** | \\<0.001", "lower", " (±0.50, p <0.001), better"),
        (made(-2.0, 2, 0.03, 0.06, True), "-2.00 ±2.0 | 0.060", "lower", " (±2.0, p 0.060), no difference is shown"),
        (made(2.0, 0.5, 0.01, 0.02, False), "+2.00 ±0.50 | 0.020", "higher", " (±0.50, p 0.020), worse"),
        (made(2.0, None, None, None, None), "+2.00 | ", "higher", ""),
    ],
)  # fmt: skip
def test_what_is_said_of_a_difference_goes_by_the_adjusted_p(
    found: Difference, row: str, side: str, judged: str
) -> None:
    table = difference_table([found], SUITE, "a")
    assert table is not None
    assert markdown(table).splitlines()[-1] == f"| b | 1 | {row} | 75 % ±12 |"
    (text,) = verdicts(summarise(rows("b", 1, [3.0, 3.1]), SUITE.lower_is_better), SUITE, [found])
    assert text.partition("; ")[2] == f"w2 2.00 {side} than a{judged}."


def test_what_training_took_is_the_mean_over_replicates() -> None:
    found = [
        row for n, spent in enumerate((100.0, 300.0)) for row in rows("a", 1, [1.0, 2.0], evaluations=spent)[n : n + 1]
    ]
    (line,) = (one for one in summarise(found, SUITE.lower_is_better) if one.metric == "w2")
    assert (line.evaluations, line.training_seconds) == (200.0, None)


# Compare --------------------------------------------------------------------------------------------------------------


class Scored:
    """A suite whose one measure is the mean of a record's points."""

    nearness = ""

    def score(self, record: Any, teacher: Any, other: Any, counts: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"mean": counts @ record["points"].mean(1) / counts.sum(1)}


def scorer(folder: Path, moved: float) -> Scorer:
    """A bench of one cell, whose true objects are moved by so much."""
    points = torch.randn(OBJECTS, 2, generator=torch.Generator().manual_seed(0))
    cells = Cells(folder)
    for label, steps, unit, added in (("teacher", 5, (None, 0), 0.3), ("a", 1, (0, 0), 0.7)):
        cells.write((label, steps, unit), {"points": points + added})
    cells.write((TRUTH, 0, (None, None)), {"points": points + moved})
    (folder / "environment.json").write_text(json.dumps({"seeds": [0], "teacher": {"contract": {"steps": [5]}}}))
    return Scorer(Scored(), cells, [0], 5)  # type: ignore[arg-type]


def test_an_earlier_bench_is_resampled_with_this_one_where_both_are_of_the_same_objects(tmp_path: Path) -> None:
    quiet, cell = Console(quiet=True), ("a", 1, (0, 0))
    new, draws = scorer(tmp_path / "new", 0.0), draws_of(rows("a", 1, [0.0]))
    for name, moved in (("alike", 1e-5), ("other", 0.1)):
        scorer(tmp_path / name, moved)
        found = resampled(tmp_path / name / "rows.csv", new, draws, quiet)
        if name == "other":
            assert found is None
        else:
            assert found is not None
            values = (draws.counts @ new.record(cell)["points"].mean(1).double().numpy()) / OBJECTS
            assert np.allclose(found.values[cell]["mean"], values, atol=1e-5)
