"""``run_bench`` on a closed form: conditional Gaussians, whose teacher, transport and measures are known exactly."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from scipy import stats
from torch import Tensor, nn

from fewstep.benchmark import sampling
from fewstep.benchmark.api import BenchTable
from fewstep.benchmark.compare import Change, compare
from fewstep.benchmark.config import BenchConfig
from fewstep.benchmark.entrants import OTHER_NOISE, TRUTH, Stage, student, with_samplers
from fewstep.benchmark.resampling import Estimate, estimate
from fewstep.benchmark.rows import EarlierRow, Row
from fewstep.benchmark.run import run_bench
from fewstep.benchmark.sampling import CHUNK, chunks
from fewstep.benchmark.summary import gap_closed
from fewstep.config.base import Strict, validate
from fewstep.core.backbone import Backbone, Teacher
from fewstep.core.batch import Batch, Condition
from fewstep.core.contract import Contract
from fewstep.core.guidance import Guidance
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense, Layout, Packed
from fewstep.core.objective import Step
from fewstep.core.samplers import euler
from fewstep.core.suite import Suite
from fewstep.engine.export import StudentInfo
from fewstep.errors import FewstepError
from fewstep.metrics import agreement, sliced_wasserstein

COUNT, SPREAD, GUIDANCE = 70, 0.5, 2.0  # more samples than one chunk of 64


class Gaussian(Backbone):
    """The exact velocity towards N(c, SPREAD^2), c the condition; guided by g, towards N(g c, SPREAD^2).

    With ``student_off_by`` a student of the teacher guided by 2: exact at 0, too wide by that much otherwise.
    """

    Config = Strict

    def __init__(self, student_off_by: float | None = None, broken: bool = False) -> None:
        super().__init__()
        self.off, self.broken = student_off_by, broken
        self.calls: list[tuple[int, float]] = []
        self.starts: list[Tensor] = []
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        assert cond.tokens is not None
        self.calls.append((layout.batch_size, float(t_B[0])))
        if float(t_B[0]) == 1.0 and layout.batch_size > 2:  # not the warm-up
            self.starts.append(x.clone())
        t, mean = layout.expand(t_B, x), cond.tokens * (1.0 if self.off is None else GUIDANCE)
        if self.broken:
            return torch.full_like(x, math.nan)
        if self.off is not None:  # the average velocity to the data, from x_t = (1-t) mean + sd(t) z
            z = (x - (1 - t) * mean) / ((1 - t) ** 2 * SPREAD**2 + t**2).sqrt()
            return (x - (mean + (SPREAD + self.off) * z)) / t
        variance = (1 - t) ** 2 * SPREAD**2 + t**2
        return (t - (1 - t) * SPREAD**2) / variance * (x - (1 - t) * mean) - mean


class Points(Suite):
    """Points are their own objects; one measure that falls, one that rises."""

    headline = "w2"
    lower_is_better = frozenset({"w2"})
    charts = ("agree",)
    legend: ClassVar = {"w2": "sliced Wasserstein distance to the truth"}

    def __init__(self, layout: Layout | None = None) -> None:
        generator = torch.Generator().manual_seed(5)
        self.mean = 0.1 * torch.randn(COUNT, 3, generator=generator)
        self.x0 = GUIDANCE * self.mean + SPREAD * torch.randn(COUNT, 3, generator=generator)
        self.sheets: list[list[str]] = []
        self.conditions: list[int | None] = []

    def prompts(self, limit: int | None = None) -> Batch:
        x0 = self.x0[:limit]
        return Batch(x0, Dense(len(x0)), Condition(self.mean[:limit]))

    def condition(self, limit: int | None = None) -> None:
        self.conditions.append(limit)

    def decode(self, x: Tensor, layout: Layout) -> Tensor:
        return x

    def measure(self, objects: Any, teacher_objects: Any) -> dict[str, float]:
        return {
            "agree": agreement(objects, teacher_objects),
            "w2": sliced_wasserstein(objects, self.x0[: len(objects)]),
        }

    def sheet(self, rows: Sequence[tuple[str, Any]], path: Path, count: int) -> None:
        self.sheets.append([label for label, _ in rows])
        self.columns = count
        Image.new("RGB", (120, 40)).save(path)

    def strip(self, rows: Sequence[tuple[str, Any]], path: Path, count: int) -> None:
        self.strips = [label for label, _ in rows]
        Image.new("RGB", (120, 40)).save(path)


def info(method: str = "perfect", contract: Contract | None = None) -> StudentInfo:
    """What a student's folder says of it."""
    return StudentInfo(
        contract=contract or Contract(steps=(1,)), method=method, backbone="gauss", dataset="points", plugin="tests",
        weights="student", step=250, seconds=1.5, budget={}, derivatives="one-pass", config={}, versions={},
    )  # fmt: skip


@dataclass
class Bench:
    """A finished bench and what went into it."""

    report: BenchTable
    text: str
    suite: Points
    teacher: Gaussian
    students: list[Gaussian]

    def rows(self, **wanted: Any) -> list[dict[str, str]]:
        with (self.report.folder / "rows.csv").open() as file:
            found = list(csv.DictReader(file))
        return [row for row in found if all(row[key] == str(value) for key, value in wanted.items())]


def run(
    stage: Stage,
    students: list[Any],
    out: Path,
    console: Console,
    compare: Path | None = None,
    resume: bool = False,
    report: bool = False,
    **keys: Any,
) -> BenchTable:
    keys = {"steps": (1, 2), "seeds": (0, 1, 2), "device": "cpu", **keys}
    config, entrants = validate(BenchConfig, keys), [student(label, [(net, of)]) for label, net, of in students]
    options: Any = {"compare": compare, "console": console, "resume": resume, "report": report}
    table = run_bench("gauss", [stage], entrants, config, out, **options)
    table.show(console)
    return table


def bench(
    out: Path,
    guidance: float = GUIDANCE,
    students: Any = None,
    width: int = 200,
    suite: Points | None = None,
    **options: Any,
) -> Bench:
    teacher, suite, text = Gaussian(), suite or Points(), io.StringIO()
    if students is None:
        students = [(None, Gaussian(0.0), info()), ("worse", Gaussian(0.2), info("perfect", Contract(steps=(1, 2))))]
    stage = Stage("", Teacher(teacher, Guidance(guidance)), suite)
    report = run(stage, students, out, Console(file=text, width=width), **options)
    return Bench(report, text.getvalue(), suite, teacher, [student for _, student, _ in students])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "ELEMENTS", 0)  # two chunks
        return bench(tmp_path_factory.mktemp("bench") / "out")


# Numbers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("label", "steps"), [("teacher", 25), ("undistilled", 1), ("undistilled", 2)])
def test_values_in_the_csv_are_those_of_direct_sampling(done: Bench, label: str, steps: int) -> None:
    batch = done.suite.prompts()
    teacher = Teacher(Gaussian(), Guidance(GUIDANCE))
    for seed in (0, 1, 2):
        x = euler(
            teacher,
            done.suite.noise(seed, batch),
            batch.cond,
            batch.layout,
            Contract().grid(steps),
            Step(0, Interpolant()),
        )
        (row,) = done.rows(label=label, steps=steps, seed=seed, metric="w2")
        assert float(row["value"]) == pytest.approx(sliced_wasserstein(x, batch.x0), rel=1e-5)


def test_a_perfect_student_is_the_exact_transport(done: Bench) -> None:
    batch = done.suite.prompts()
    for seed in (0, 1, 2):
        exact = GUIDANCE * done.suite.mean + SPREAD * done.suite.noise(seed, batch)
        (row,) = done.rows(label="perfect", steps=1, seed=seed, metric="w2")
        assert float(row["value"]) == pytest.approx(sliced_wasserstein(exact, batch.x0), rel=1e-4)


def test_every_row_says_what_it_is_of(done: Bench) -> None:
    for row in done.rows():
        assert row["backbone"] == "gauss"
        assert row["samples"] == str(COUNT)
        assert "torch" in row["versions"]
        assert "cores" in row["machine"]
    metrics = {row["metric"] for row in done.rows(label="perfect")}
    assert metrics == {"w2", "agree", "seconds_condition", "seconds_flow", "seconds_decode"}
    assert len(done.rows(label="worse", metric="w2")) == 6


def test_evaluations_are_counted_and_guidance_counts_twice(done: Bench) -> None:
    nfe = {(row["label"], row["steps"]): float(row["nfe"]) for row in done.rows(metric="w2")}
    assert nfe["teacher", "25"] == 50
    assert nfe["undistilled", "1"] == 2
    assert nfe["undistilled", "2"] == 4
    assert nfe["perfect", "1"] == 1
    assert nfe["worse", "2"] == 2
    warm_up = 2 * 2  # a guided step for each entrant of the teacher's network, on two samples
    assert sum(size for size, _ in done.teacher.calls) == 3 * COUNT * (50 + 2 + 4) + 2 * warm_up
    assert len(done.teacher.calls) == 3 * 2 * (50 + 2 + 4) + warm_up
    assert sum(size for size, _ in done.students[0].calls) == 3 * COUNT * 3 + 2


def test_an_unguided_teacher_and_a_second_order_student(tmp_path: Path) -> None:
    heun = info("heun-like", Contract(sampler="heun", guidance=3.0, steps=(2,)))
    found = bench(tmp_path / "b", guidance=1.0, students=[(None, Gaussian(), heun)], steps=(2,), seeds=(0,))
    nfe = {row["label"]: (row["nfe"], row["guidance"], row["sampler"]) for row in found.rows(metric="w2")}
    assert nfe["teacher"] == ("25.0", "1.0", "euler")
    assert nfe["undistilled"] == ("2.0", "1.0", "euler")
    assert nfe["heun-like"] == ("8.0", "3.0", "heun")


def test_guidance_on_an_interval_costs_only_there(tmp_path: Path) -> None:
    suite, teacher = Points(), Teacher(Gaussian(), Guidance(2.0, (0.5, 1.0)))
    report = run(Stage("", teacher, suite), [], tmp_path / "b", Console(quiet=True), steps=(2,), seeds=(0,))
    assert {(row.label, row.steps): row.nfe for row in report.rows if row.seed == 0}["teacher", 25] == 25 + 13


def test_the_noise_of_a_seed_is_the_same_for_all(done: Bench) -> None:
    def starts(network: Gaussian, each: int) -> list[Tensor]:
        chunks = network.starts[::each]
        return [torch.cat(pair) for pair in zip(chunks[::2], chunks[1::2], strict=True)]

    expected = [done.suite.noise(seed, done.suite.prompts()) for seed in (0, 1, 2)]
    teacher = starts(done.teacher, 2)  # guided: each start is seen twice; 25 steps, 1 step, 2 steps a seed
    for seed, noise in enumerate(expected):
        assert all(torch.equal(x, noise) for x in teacher[3 * seed : 3 * seed + 3])
    for network in done.students:
        found = starts(network, 1)
        assert len(found) == 6
        assert all(torch.equal(x, expected[i // 2]) for i, x in enumerate(found))
    assert not torch.equal(expected[0], expected[1])
    assert CHUNK < COUNT
    assert len(chunks(done.suite.prompts())) == 1  # samples this small share a chunk


# Summary --------------------------------------------------------------------------------------------------------------


def summary(found: Bench) -> dict[tuple[str, int, str], dict[str, str]]:
    with (found.report.folder / "summary.csv").open() as file:
        return {(row["label"], int(row["steps"]), row["metric"]): row for row in csv.DictReader(file)}


def test_intervals_are_those_of_scipy(done: Bench) -> None:
    values = [float(row["value"]) for row in done.rows(label="worse", steps=2, metric="w2")]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    row = summary(done)["worse", 2, "w2"]
    assert float(row["value"]) == pytest.approx(np.mean(values))
    assert (float(row["low"]), float(row["high"])) == pytest.approx((low, high))
    assert row["count"] == "3"


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    found = bench(tmp_path / "b", seeds=(4,))
    assert estimate([3.0]) == Estimate(3.0)
    row = summary(found)["perfect", 1, "w2"]
    assert (row["half"], row["low"], row["high"]) == ("n/a", "", "")
    assert "one seed, so no intervals" in found.text
    assert "±" not in found.text
    assert not found.rows(label=OTHER_NOISE)


def test_times_are_medians_and_speed_is_relative_to_the_teacher(done: Bench) -> None:
    def median(label: str, steps: int, stage: str) -> float:
        rows = done.rows(label=label, steps=steps, metric=f"seconds_{stage}")
        return float(np.median([float(row["value"]) for row in rows]))

    flow = median("teacher", 25, "flow") / median("perfect", 1, "flow")
    row = summary(done)["perfect", 1, "speedup_flow"]
    assert float(row["value"]) == pytest.approx(flow)
    stages = ("condition", "flow", "decode")
    whole = sum(median("teacher", 25, s) for s in stages) / sum(median("perfect", 1, s) for s in stages)
    assert float(summary(done)["perfect", 1, "speedup_total"]["value"]) == pytest.approx(whole)
    assert float(summary(done)["teacher", 25, "speedup_flow"]["value"]) == 1.0
    assert done.suite.conditions == [16] * 3


def test_the_share_of_the_gap_is_the_ratio_of_means(done: Bench) -> None:
    def values(label: str, steps: int) -> list[float]:
        return [float(row["value"]) for row in done.rows(label=label, steps=steps, metric="w2")]

    u, s, t = np.mean(values("undistilled", 1)), np.mean(values("worse", 1)), np.mean(values("teacher", 25))
    row = summary(done)["worse", 1, "gap_closed/w2"]
    assert float(row["value"]) == pytest.approx((u - s) / (u - t))
    assert ("undistilled", 1, "gap_closed/w2") not in summary(done)
    assert ("teacher", 25, "gap_closed/w2") not in summary(done)


def test_gap_closed() -> None:
    u, t = [10.0, 12.0, 11.0], [1.0, 3.0, 2.0]
    assert gap_closed(u, t, t, lower_is_better=True) == (1.0, pytest.approx(0))
    assert gap_closed(u, u, t, lower_is_better=True) == (0.0, pytest.approx(0))
    assert gap_closed([1.0], [2.0], [3.0], lower_is_better=False) == (0.5, None)
    assert gap_closed(t, u, u, lower_is_better=True) is None  # undistilled is the better one: no gap
    assert gap_closed([10.0], [math.nan], [1.0], lower_is_better=True) is None


def test_the_interval_of_the_gap_covers_the_truth() -> None:
    """A ratio of means over noisy seeds: its 95 % interval must hold the true share in about 95 % of all benches."""
    draw, hits = np.random.default_rng(0), 0
    for _ in range(1000):
        u, s, t = (centre + draw.normal(0, 4, 5) for centre in (200.0, 120.0, 100.0))
        found = gap_closed(list(u), list(s), list(t), lower_is_better=True)
        assert found is not None
        assert found[1] is not None
        hits += abs(found[0] - 0.8) <= found[1]
    assert 920 <= hits <= 980


# What is written ------------------------------------------------------------------------------------------------------


def test_rows_that_are_always_there(done: Bench) -> None:
    labels = {row["label"] for row in done.rows()}
    assert {"teacher", "undistilled", TRUTH, OTHER_NOISE} <= labels
    assert float(done.rows(label=TRUTH, metric="w2")[0]["value"]) == 0.0
    assert len(done.rows(label=OTHER_NOISE, metric="agree")) == 3
    assert float(summary(done)["teacher", 25, "agree"]["value"]) == 1.0
    assert float(summary(done)[OTHER_NOISE, 25, "agree"]["value"]) < 0.95


def test_the_teacher_s_own_step_count_is_run_once(tmp_path: Path) -> None:
    found = bench(tmp_path / "b", students=[], steps=(1, 25), seeds=(0, 1))
    assert {row["steps"] for row in found.rows(label="undistilled")} == {"1"}
    assert len(found.rows(label=OTHER_NOISE, metric="w2")) == 1


def test_markdown_and_console_show_the_tables(done: Bench) -> None:
    text = (done.report.folder / "table.md").read_text()
    for part in ("| perfect |", "w2 ↓", "agree ↑", "gap closed", "x flow", "70 held-out samples, 3 seeds"):
        assert part in text
    for part in ("perfect", "undistilled", "w2 ↓", "gap closed", "x flow", "cell 21/21"):
        assert part in done.text


def test_step_counts_that_a_contract_does_not_name_are_marked(done: Bench) -> None:
    assert "| perfect | 2\\* |" in (done.report.folder / "table.md").read_text()
    assert "| worse | 2 |" in (done.report.folder / "table.md").read_text()
    assert "does not name" in done.text
    assert {row["made_for"] for row in done.rows(label="perfect", steps=2)} == {"no"}


def test_a_narrow_console_folds_the_table_and_cuts_nothing(tmp_path: Path) -> None:
    found = bench(tmp_path / "b", width=60, seeds=(0, 1))
    assert "…" not in found.text
    assert found.text.count("quality") == 1
    assert "".join(found.text.split()).count("undistilled") >= 4
    assert max(len(line.rstrip()) for line in found.text.splitlines() if " ±" in line and "Student" not in line) <= 60


def test_pictures_and_environment(done: Bench) -> None:
    with Image.open(done.report.folder / "chart.png") as chart:
        assert chart.width > 800
    assert done.report.chart().size[0] > 800
    assert done.report.sheet().size[0] > 100
    assert done.suite.sheets[0][:3] == ["teacher, 25 steps", "undistilled, 1 step", "perfect, 1 step"]
    record = json.loads((done.report.folder / "environment.json").read_text())
    assert record["seeds"] == [0, 1, 2]
    assert record["samples"] == COUNT
    assert record["teacher"]["contract"]["guidance"] == 2.0
    assert record["students"][0]["step"] == 250
    assert record["students"][1]["label"] == "worse"
    assert {"python", "torch", "fewstep"} <= set(record["versions"])
    assert record["command"]


def test_limit(tmp_path: Path) -> None:
    found = bench(tmp_path / "b", limit=10, seeds=(0,))
    assert {row["samples"] for row in found.rows()} == {"10"}
    assert max(size for size, _ in found.teacher.calls) == 10
    assert found.suite.columns == 8
    assert bench(tmp_path / "c", limit=5, seeds=(0,)).suite.columns == 5  # not more columns than there are samples


def test_a_student_that_diverged_is_shown_as_such(tmp_path: Path) -> None:
    found = bench(tmp_path / "b", students=[(None, Gaussian(broken=True), info())], seeds=(0,), steps=(1,))
    assert found.rows(label="perfect", metric="non_finite")[0]["value"] == "1.0"
    assert "perfect!" in found.text
    assert "100 % of the samples were not finite" in found.text


class Ragged(Points):
    """The same points as samples of 1, 2, 3, ... rows."""

    def prompts(self, limit: int | None = None) -> Batch:
        lengths = list(range(1, 11))
        rows = sum(lengths)
        return Batch(self.x0[:rows], Packed.of_lengths(lengths), Condition(torch.zeros(10, 1)))


class Linear(Gaussian):
    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        self.calls.append((layout.batch_size, float(t_B[0])))
        return layout.expand(t_B, x) * x


def test_packed_samples(tmp_path: Path) -> None:
    stage = Stage("", Teacher(Linear()), Ragged())
    report = run(stage, [], tmp_path / "b", Console(quiet=True), steps=(1,), seeds=(0,))
    assert {row.nfe for row in report.rows if row.label == "teacher"} == {25.0}


def test_consistency_students_differ_by_seed_and_chunk_in_their_fresh_noise(tmp_path: Path) -> None:
    cm = info("cm", Contract(sampler="consistency", steps=(2,)))
    once = bench(tmp_path / "a", students=[(None, Gaussian(0.0), cm)], steps=(2,), seeds=(0, 1))
    again = bench(tmp_path / "b", students=[(None, Gaussian(0.0), cm)], steps=(2,), seeds=(0, 1))
    wanted = {"label": "cm", "metric": "w2"}
    assert [row["value"] for row in once.rows(**wanted)] == [row["value"] for row in again.rows(**wanted)]
    assert len({row["value"] for row in once.rows(**wanted)}) == 2


def test_students_are_measured_with_other_samplers_in_rows_of_their_own(tmp_path: Path) -> None:
    cm, net = info("cm", Contract(sampler="consistency", steps=(2,))), Gaussian(0.1)
    own = student("mine", [(net, cm)])
    found = with_samplers([own], ("euler", "consistency", "consistency:0.5"))
    assert [(one.label, one.samplers) for one in found] == [
        ("mine", "consistency"), ("mine, euler", "euler"), ("mine, consistency:0.5", "consistency:0.5")
    ]  # fmt: skip
    stage, config = Stage("", Teacher(Gaussian()), Points()), validate(BenchConfig, {"steps": (2,), "seeds": (0,)})
    table = run_bench("gauss", [stage], found, config, tmp_path / "b", console=Console(quiet=True))
    values = {row.label: (row.value, row.sampler) for row in table.rows if row.metric == "w2"}
    euler_alone = info("cm", Contract(sampler="euler", steps=(2,)))
    alone = bench(tmp_path / "c", students=[("e", net, euler_alone)], steps=(2,), seeds=(0,), guidance=1.0)
    (row,) = alone.rows(label="e", metric="w2")
    assert values["mine, euler"] == (float(row["value"]), "euler")
    assert len({value for value, _ in values.values()}) == len(values)


def test_a_sampler_that_a_student_cannot_use_is_refused_before_sampling() -> None:
    net = Gaussian(0.0)
    one = student("mine", [(net, info("cm", Contract(sampler="consistency")))])
    with pytest.raises(FewstepError, match="--samplers gamma: student 'mine': sampler 'gamma' passes a target time"):
        with_samplers([one], ("euler", "gamma"))
    assert net.calls == []


class Gappy(Points):
    """A suite that cannot measure everything everywhere: ``lacks(cell)`` names the measures that cell number lacks."""

    def __init__(self, lacks: Any) -> None:
        super().__init__()
        self.lacks, self.cell = lacks, -1

    def measure(self, objects: Any, teacher_objects: Any) -> dict[str, float]:
        self.cell += 1
        return {n: v for n, v in super().measure(objects, teacher_objects).items() if n not in self.lacks(self.cell)}


@pytest.mark.parametrize(("cell", "label"), [(3, "perfect"), (0, "teacher"), (1, "undistilled")])
def test_a_measure_that_one_cell_lacks_leaves_the_others(tmp_path: Path, cell: int, label: str) -> None:
    """The cells of a seed in order: teacher, then undistilled, perfect and worse at 1 and at 2 steps each."""
    found = bench(tmp_path / "b", suite=Gappy(lambda number: {"w2"} if number == cell else ()))
    steps = 25 if label == "teacher" else 1
    lines = summary(found)
    assert lines[label, steps, "w2"]["count"] == "2"
    assert len(found.rows(metric="w2", steps=steps, label=label)) == 2

    def values(label: str, steps: int) -> list[float]:
        rows = [row for seed in (1, 2) for row in found.rows(label=label, steps=steps, metric="w2", seed=seed)]
        return [float(row["value"]) for row in rows]

    u, s, t = values("undistilled", 1), values("perfect", 1), values("teacher", 25)
    gap = lines["perfect", 1, "gap_closed/w2"]  # over the two seeds that all three have
    assert float(gap["value"]) == pytest.approx((np.mean(u) - np.mean(s)) / (np.mean(u) - np.mean(t)))
    assert gap["count"] == "2"
    files = {path.name for path in found.report.folder.iterdir()}
    assert files >= {"table.md", "chart.png", "sheet.png", "summary.csv"}


def test_a_measure_that_a_method_lacks_on_every_seed_is_an_empty_cell(tmp_path: Path) -> None:
    found = bench(tmp_path / "b", suite=Gappy(lambda number: {"w2"} if number % 7 == 3 else ()))
    text = (found.report.folder / "table.md").read_text()
    (line,) = (line for line in text.partition("time per sample")[0].splitlines() if "| perfect | 1 |" in line)
    assert line.split("|")[5:7] == ["  ", "  "]  # w2 and the share of its gap
    assert "±" in line  # the other measure is there


def test_a_suite_without_any_measure_still_has_its_times(tmp_path: Path) -> None:
    found = bench(tmp_path / "b", suite=Gappy(lambda number: {"w2", "agree"}))
    assert "x flow" in (found.report.folder / "table.md").read_text()
    assert (found.report.folder / "chart.png").exists()


# Compare --------------------------------------------------------------------------------------------------------------


def measured(values: dict[int, float], metric: str = "w2") -> list[Row]:
    same: dict[str, Any] = {"label": "mine", "method": "m", "steps": 1, "nfe": 1.0, "guidance": 1.0}
    same |= {"sampler": "euler", "made_for": True, "metric": metric}
    return [Row(**same, seed=seed, value=value) for seed, value in values.items()]


def earlier(values: dict[int, float], metric: str = "w2") -> list[EarlierRow]:
    return [EarlierRow(label="mine", steps=1, metric=metric, seed=seed, value=v) for seed, v in values.items()]


def change(old: dict[int, float], new: dict[int, float]) -> Change:
    (found,) = compare(earlier(old), measured(new))
    return found


def test_differences_are_paired_by_seed() -> None:
    same = change({0: 1.0, 1: 2.0, 2: 3.0}, {2: 3.2, 0: 1.2, 1: 2.2})  # + 0.2 on every seed, in another order
    assert (same.pairing, same.seeds, same.moved) == ("paired", 3, True)
    assert same.difference == pytest.approx(0.2)
    assert same.half == pytest.approx(0, abs=1e-12)
    # Differences 0.1, 0.2, 0.3: mean 0.2, deviation 0.1, t(2) = 4.302653: 4.302653 * 0.1 / sqrt(3) = 0.248414
    wide = change({0: 1.0, 1: 2.0, 2: 3.0}, {0: 1.1, 1: 2.2, 2: 3.3})
    assert wide.half == pytest.approx(0.248414, rel=1e-5)
    assert wide.moved is False


def test_seeds_that_one_bench_lacks_are_left_out_of_the_pairs() -> None:
    found = change({0: 1.0, 1: 2.0}, {0: 1.5, 1: 2.5, 7: 100.0})
    assert (found.old, found.new, found.difference, found.seeds) == (1.5, 2.0, 0.5, 2)
    assert found.moved is True


def test_other_seeds_are_compared_unpaired() -> None:
    # Variance 1 each: sqrt(1/3 + 1/3) = 0.816497, 4 degrees of freedom, t = 2.776445: half = 2.266958
    found = change({0: 1.0, 1: 2.0, 2: 3.0}, {3: 4.0, 4: 5.0, 5: 6.0})
    assert (found.pairing, found.difference, found.moved) == ("unpaired", 3.0, True)
    assert found.half == pytest.approx(2.266958, rel=1e-6)
    assert change({0: 1.0, 1: 2.0, 2: 3.0}, {3: 3.0, 4: 4.0, 5: 5.0}).moved is False


def test_rounding_is_no_movement_and_nan_tells_nothing() -> None:
    assert change({0: 1.0, 1: 2.0}, {0: 1.0 + 1e-8, 1: 2.0 + 1e-8}).moved is False
    assert change({0: 1.0, 1: 2.0}, {0: math.nan, 1: 2.0}).moved is None
    assert change({0: 1.0}, {0: 2.0}).moved is None
    assert change({0: 1.0, 1: 2.0}, {5: 2.0}).moved is None


def test_the_output_says_how_it_compared(done: Bench, tmp_path: Path) -> None:
    old = done.report.folder / "rows.csv"
    assert "differences paired by seed" in bench(tmp_path / "b", compare=old).text
    text = bench(tmp_path / "c", compare=old, seeds=(5, 6)).text
    assert "unpaired: the seeds differ" in text
    assert "moved" in (tmp_path / "c" / "table.md").read_text()


def changed(path: Path, out: Path, change: Any) -> Path:
    with path.open() as file:
        rows = list(csv.DictReader(file))
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows([{**row, **change(row)} for row in rows])
    return out


def test_compare_shows_what_moved_and_only_that(done: Bench, tmp_path: Path) -> None:
    def was_worse(row: dict[str, str]) -> dict[str, str]:
        hit = row["label"] == "worse" and row["metric"] == "w2" and row["steps"] == "1"
        return {"value": str(float(row["value"]) + 5)} if hit else {}

    old = changed(done.report.folder / "rows.csv", tmp_path / "old.csv", was_worse)
    found = bench(tmp_path / "b", compare=old)
    with (tmp_path / "b" / "compare.csv").open() as file:
        rows = {(row["label"], row["steps"], row["metric"]): row for row in csv.DictReader(file)}
    moved = rows["worse", "1", "w2"]
    assert float(moved["difference"]) == pytest.approx(-5)
    assert float(moved["new"]) == pytest.approx(float(moved["old"]) - 5)
    assert (moved["moved"], moved["pairing"], moved["seeds"]) == ("yes", "paired", "3")
    assert rows["perfect", "1", "w2"]["moved"] == "no"
    assert rows["perfect", "1", "seconds_flow"]["moved"] == "n/a"
    table = found.text[found.text.index("what moved") :]
    assert "worse" in table
    assert "perfect" not in table.partition("perfect, 1 step:")[0]
    assert "1 of" in table


def test_compare_with_one_seed_cannot_tell(done: Bench, tmp_path: Path) -> None:
    found = bench(tmp_path / "b", compare=done.report.folder / "rows.csv", seeds=(7,))
    table = found.text[found.text.index("what moved") :]
    assert "n/a" in table
    assert "0 of" in table


def test_compare_says_what_was_different(done: Bench, tmp_path: Path) -> None:
    found = bench(tmp_path / "b", compare=done.report.folder / "rows.csv", limit=20, seeds=(0, 1))
    assert "not the same in both: samples: 70 then, 20 now" in found.text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("label,step,seed,metric,value\na,1,0,w2,3\n", "columns steps are missing.*'step' instead of 'steps'"),
        ("a,b\n1,2\n", "columns label, steps, seed, metric, value are missing \\(it has: a, b\\)"),
        ("", "the file is empty"),
        ("label,steps,seed,metric,value\n", "holds no rows"),
        ("label,steps,seed,metric,value\na,1,0,w2,much\n", "line 2: value is 'much' .*valid number"),
        ("label,steps,seed,metric,value\na\n", "line 2: steps is None .*valid integer"),
    ],
)
def test_a_foreign_csv_is_refused_before_anything_runs(tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "old.csv").write_text(content)
    with pytest.raises(FewstepError, match=expected):
        bench(tmp_path / "b", compare=tmp_path / "old.csv")
    assert not (tmp_path / "b").exists()


def test_compare_with_no_file_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(FewstepError, match=r"--compare: .*none.csv.*No such file.*accepted"):
        bench(tmp_path / "b", compare=tmp_path / "none.csv")
    (tmp_path / "picture.csv").write_bytes(b"\xff\xfe\x00\x89PNG")
    with pytest.raises(FewstepError, match=r"--compare: .*picture.csv: not text in UTF-16"):
        bench(tmp_path / "b", compare=tmp_path / "picture.csv")


# Errors ---------------------------------------------------------------------------------------------------------------


def test_an_occupied_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FewstepError, match=r"--out: .*exists.*nothing is overwritten"):
        bench(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FewstepError, match="--out"):
        bench(tmp_path / "file" / "b")


def test_a_folder_that_refuses_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(path: Path, content: bytes) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", refuses)  # chmod does not stop root
    suite = Points()
    with pytest.raises(FewstepError, match="cannot be written: Permission denied"):
        bench(tmp_path / "b", suite=suite)
    assert not suite.conditions  # nothing was measured


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"steps": ()}, r"^steps: got \(\)"),
        ({"steps": (0,)}, r"^steps: got \(0,\); accepted: .*>= 1"),
        ({"seeds": (1, 1)}, r"^seeds: got \(1, 1\); accepted: each number once"),
        ({"limit": 1}, "^limit: got 1"),
    ],
)
def test_unusable_numbers(tmp_path: Path, options: dict[str, Any], key: str) -> None:
    with pytest.raises(FewstepError, match=key):
        bench(tmp_path / "b", **options)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("labels", [(None, None), ("a", "a"), (None, "teacher"), (None, "undistilled")])
def test_labels_must_differ(tmp_path: Path, labels: tuple[str | None, str | None]) -> None:
    students = [(label, Gaussian(0.0), info()) for label in labels]
    with pytest.raises(FewstepError, match=r"--student: label .* is taken"):
        bench(tmp_path / "b", students=students)


def test_a_contract_with_an_unknown_sampler(tmp_path: Path) -> None:
    with pytest.raises(FewstepError, match=r"unknown sampler 'eulr'.*did you mean 'euler'"):
        bench(tmp_path / "b", students=[(None, Gaussian(), info("m", Contract(sampler="eulr")))])


def test_a_bench_that_breaks_keeps_its_rows_and_without_rows_no_folder(tmp_path: Path) -> None:
    class Breaks(Gaussian):
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            if len(self.calls) >= self.after:
                raise RuntimeError("out of memory")
            return super().forward(*args, **kwargs)

        after = 0

    for after, kept in ((0, False), (1, True)):
        network = Breaks(0.0)
        network.after = after
        with pytest.raises(RuntimeError, match="out of memory"):
            bench(tmp_path / f"b{after}", students=[(None, network, info())])
        assert (tmp_path / f"b{after}" / "rows.csv").exists() == kept
        assert (tmp_path / f"b{after}").exists() == kept


# Going on -------------------------------------------------------------------------------------------------------------


class Stopped(Points):
    """Ends the bench while it measures cell number ``cell``."""

    def __init__(self, cell: int, error: type[BaseException]) -> None:
        super().__init__()
        self.left, self.error = cell, error

    def measure(self, objects: Any, teacher_objects: Any) -> dict[str, float]:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().measure(objects, teacher_objects)


def quality(found: Bench) -> list[tuple[str, ...]]:
    rows = [row for row in found.rows() if not row["metric"].startswith("seconds_")]
    return sorted((row["label"], row["steps"], row["seed"], row["metric"], row["value"]) for row in rows)


@pytest.mark.parametrize("cell", [1, 6, 8, 21])  # of the first seed, of the second, the references
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_bench_that_was_stopped_goes_on(done: Bench, tmp_path: Path, cell: int, error: type[BaseException]) -> None:
    with pytest.raises(error):
        bench(tmp_path / "b", suite=Stopped(cell, error))
    with (tmp_path / "b" / "rows.csv").open("a") as file:
        file.write("worse,worse,2,1,2.0")  # a line that was cut
    found = bench(tmp_path / "b", resume=True)
    assert quality(found) == quality(done)
    sampled = [calls for calls, _ in found.teacher.calls if calls > 2]
    assert sum(sampled) <= sum(calls for calls, _ in done.teacher.calls if calls > 2)
    assert found.suite.sheets == done.suite.sheets


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions take notes since Python 3.11")
def test_an_error_of_a_plugin_says_what_was_being_measured(tmp_path: Path) -> None:
    class Faulty(Gaussian):
        def forward(self, x: Tensor, *args: Any, **keys: Any) -> Tensor:
            if len(self.calls) >= calls:
                raise ZeroDivisionError("a bug of a plugin")
            return super().forward(x, *args, **keys)

    def notes() -> list[str]:
        with pytest.raises(ZeroDivisionError, match="a bug of a plugin") as found:
            bench(tmp_path / "b", students=[("mine", Faulty(0.0), info("bug"))], steps=(1, 2), seeds=(0,))
        return found.value.__notes__

    calls = 0
    assert notes() == ["while trying mine (method bug) on two samples"]
    assert not (tmp_path / "b").exists()  # nothing was measured
    calls = 2
    assert notes() == ["while measuring mine, 2 steps, seed 0"]
    with (tmp_path / "b" / "rows.csv").open() as file:
        assert {row["label"] for row in csv.DictReader(file)} == {"teacher", "undistilled", "mine"}


def test_what_is_there_is_not_measured_again_and_the_report_is_drawn_anew(done: Bench, tmp_path: Path) -> None:
    first = bench(tmp_path / "b")
    before = (tmp_path / "b" / "rows.csv").read_bytes()
    for name in ("chart.png", "sheet.png", "table.md"):
        (tmp_path / "b" / name).unlink()
    again = bench(tmp_path / "b", resume=True, suite=Stopped(0, RuntimeError))
    assert (tmp_path / "b" / "rows.csv").read_bytes() == before
    assert again.suite.sheets == first.suite.sheets
    assert again.report.markdown() == first.report.markdown()


def test_seeds_steps_and_students_may_be_added(done: Bench, tmp_path: Path) -> None:
    bench(tmp_path / "b", students=[(None, Gaussian(0.0), info())], steps=(1,), seeds=(0, 1))
    found = bench(tmp_path / "b", resume=True)
    assert quality(found) == quality(done)
    assert json.loads((tmp_path / "b" / "environment.json").read_text())["seeds"] == [0, 1, 2]


def test_tables_of_a_bench_that_went_on_are_in_the_order_asked_for(tmp_path: Path) -> None:
    one, two = ("one", Gaussian(0.0), info()), ("two", Gaussian(0.1), info())
    bench(tmp_path / "b", students=[two], steps=(1,), seeds=(0, 1))
    bench(tmp_path / "b", students=[one, two], steps=(1,), seeds=(0, 1), resume=True)
    bench(tmp_path / "whole", students=[one, two], steps=(1,), seeds=(0, 1))

    def labels(folder: str) -> list[str]:
        with (tmp_path / folder / "summary.csv").open() as file:
            return list(dict.fromkeys(row["label"] for row in csv.DictReader(file)))

    assert labels("b") == labels("whole")
    record = json.loads((tmp_path / "b" / "environment.json").read_text())
    assert [student["label"] for student in record["students"]] == ["one", "two"]


def test_a_bench_goes_on_from_files_with_a_byte_order_mark(tmp_path: Path) -> None:
    first = bench(tmp_path / "b")
    for name in ("rows.csv", "environment.json"):
        (tmp_path / "b" / name).write_bytes(b"\xef\xbb\xbf" + (tmp_path / "b" / name).read_bytes())
    again = bench(tmp_path / "b", resume=True, suite=Stopped(0, RuntimeError))
    assert again.report.markdown() == first.report.markdown()


def test_a_bench_of_other_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FewstepError, match=r"--resume: .*holds no bench to go on with .*No such file"):
        bench(tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()
    bench(tmp_path / "b", steps=(1,), seeds=(0,))
    before = (tmp_path / "b" / "rows.csv").read_bytes()
    other = [(None, Gaussian(0.0), info("perfect", Contract(steps=(1,), sampler="heun")))]
    for what, options in {
        "samples": {"limit": 20},
        "teacher": {"teacher_steps": 3},
        "student 'perfect'": {"students": other},
    }.items():
        with pytest.raises(FewstepError, match=f"--resume: {what} differs from what the bench"):
            bench(tmp_path / "b", resume=True, **options)
    (tmp_path / "b" / "environment.json").write_text("{")
    with pytest.raises(FewstepError, match="damaged"):
        bench(tmp_path / "b", resume=True)
    assert (tmp_path / "b" / "rows.csv").read_bytes() == before
