"""Replicates of a method, the records of its cells, and what is computed from them."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from fewstep_toy.suite import ToySuite
from rich.console import Console
from scipy import stats
from test_bench import COUNT, Bench, Gaussian, Points, info
from test_bench import bench as run_gauss
from torch import Tensor

from fewstep.benchmark import report
from fewstep.benchmark.api import BenchTable, bench
from fewstep.benchmark.cells import Cells
from fewstep.benchmark.resampling import holm, matched
from fewstep.benchmark.rows import Row
from fewstep.cli import main
from fewstep.core.suite import Record
from fewstep.engine.export import StudentInfo
from fewstep.errors import FewstepError
from fewstep.metrics.resampled import mean_resampled

SMALL = ("train.steps=3", "train.batch_size=8", "backbone.pretrain=0", "backbone.width=8", "train.threads=1")
CONFIG: dict[str, Any] = {"teacher_steps": 3, "device": "cpu", "data": {"size": 64, "held_out": 40}}


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Three short trainings of one method in ``vm-0`` to ``vm-2`` and one of another in ``cm``. Nothing is drawn."""

    def nothing(*arguments: Any) -> None:
        next(one for one in arguments if isinstance(one, Path)).write_bytes(b"")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "chart", nothing)
        patch.setattr(ToySuite, "sheet", nothing)
        patch.chdir(tmp_path_factory.mktemp("home"))
        for seed in range(3):
            assert main(["distill", "-m", "mdt-vm", "-b", "toy", "--out", f"vm-{seed}", f"seed={seed}", *SMALL]) == 0
        assert main(["distill", "-m", "cm", "-b", "toy", "--out", "cm", *SMALL]) == 0
        yield


def run(out: str, **options: Any) -> BenchTable:
    values = {"students": {"vm": "vm-*", "cm": "cm"}, "steps": [1], "seeds": [5, 3, 8], **options}
    return bench("toy", config=CONFIG, out=out, console=Console(quiet=True), **values)


@pytest.fixture(scope="module")
def table(home: Any) -> BenchTable:
    return run("table")


def units(rows: list[Row], label: str) -> set[tuple[int | None, int | None]]:
    return {(row.training, row.seed) for row in rows if row.label == label}


def test_each_replicate_has_the_seed_of_its_number_and_one_training_has_all(table: BenchTable) -> None:
    assert units(table.rows, "vm") == {(0, 5), (1, 3), (2, 8)}
    assert units(table.rows, "cm") == {(0, 5), (0, 3), (0, 8)}
    assert units(table.rows, "undistilled") == units(table.rows, "teacher") == {(None, 5), (None, 3), (None, 8)}
    assert units(run("cyclic", seeds=[5, 3]).rows, "vm") == {(0, 5), (1, 3), (2, 5)}


@pytest.mark.parametrize("given", ["vm-[012]", ["vm-0", "vm-[12]"]])
def test_replicates_are_a_list_or_a_pattern(table: BenchTable, given: Any, tmp_path: Path) -> None:
    found = run(str(tmp_path / "b"), students={"vm": given})
    values = [[row.value for row in one.rows if (row.label, row.metric) == ("vm", "mmd")] for one in (found, table)]
    assert values[0] == values[1]


def test_repeated_options_are_replicates(table: BenchTable, tmp_path: Path) -> None:
    keys = ("teacher_steps=3", "device=cpu", "data.size=64", "data.held_out=40")
    students = [word for seed in range(3) for word in ("--student", f"vm=vm-{seed}")]
    assert (
        main(["bench", "-b", "toy", *students, "--steps", "1", "--seeds", "5,3,8", "-o", str(tmp_path / "b"), *keys])
        == 0
    )
    with (tmp_path / "b" / "rows.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["label"] == "vm" and row["metric"] == "mmd"]
    assert [(row["training"], row["seed"]) for row in rows] == [("0", "5"), ("1", "3"), ("2", "8")]
    expected = [row.value for row in table.rows if (row.label, row.metric) == ("vm", "mmd")]
    assert [float(row["value"]) for row in rows] == expected


def test_what_a_training_took_is_in_rows_lines_and_environment(table: BenchTable) -> None:
    record = json.loads((table.folder / "environment.json").read_text())
    found = [one for one in record["students"] if one["label"] == "vm"]
    assert [(one["training"], one["seed"]) for one in found] == [(0, 0), (1, 1), (2, 2)]
    infos = [json.loads(Path(f"vm-{seed}/student/config.json").read_text()) for seed in range(3)]
    took = [  # a backward pass costs two forward passes, and a tangent one more than its forward pass
        sum(kinds["forward"] + 2 * kinds["tangent"] + 2 * kinds["backward"] for kinds in info["budget"].values())
        for info in infos
    ]
    rows = {row.training: row for row in table.rows if row.label == "vm"}
    assert [rows[n].evaluations for n in range(3)] == took
    (line,) = (line for line in table.lines if (line.label, line.metric) == ("vm", "mmd"))
    assert (line.evaluations, line.trainings, line.count) == (np.mean(took), 3, 3)
    assert line.training_seconds == pytest.approx(np.mean([info["seconds"] for info in infos]))
    assert all(row.evaluations is None for row in table.rows if row.label in ("teacher", "undistilled"))


@pytest.mark.parametrize(
    ("students", "message"),
    [
        ({"a": ["vm-0", "vm-0"]}, r"label 'a' is taken \(two students with training seed 0\)"),
        ({"a": ["vm-0", "cm"]}, r"label 'a' is taken"),
        ({"a": "nothing-*"}, "'nothing-\\*': matches no folder"),
    ],
)
def test_what_is_no_set_of_replicates(students: Any, message: str) -> None:
    with pytest.raises(FewstepError, match=message):
        run("refused", students=students)
    assert not Path("refused").exists()


def test_replicates_of_other_settings_name_the_key() -> None:
    assert (
        main(["distill", "-m", "mdt-vm", "-b", "toy", "--out", "other", "seed=9", "objective.interval=0.03", *SMALL])
        == 0
    )
    with pytest.raises(FewstepError, match=r"label 'a' is taken \(objective.interval is not the same in all\)"):
        run("refused", students={"a": ["vm-0", "other"]})


def test_a_replicate_recorded_before_a_key_existed_has_its_default(tmp_path: Path) -> None:
    older = tmp_path / "older"
    shutil.copytree("vm-1/student", older)
    recorded = json.loads((older / "config.json").read_text())
    del recorded["config"]["objective"]["interval"], recorded["config"]["backbone"]["guidance"]
    (older / "config.json").write_text(json.dumps(recorded))
    replicates = run(str(tmp_path / "b"), students={"a": ["vm-0", older]}).rows
    assert units(replicates, "a") == {(0, 5), (1, 3)}


def test_units_that_share_their_noise() -> None:
    replicates, seeds = [(0, 5), (1, 3), (2, 5)], [(None, 5), (None, 3)]
    assert matched(replicates, replicates[:2]) == [((0, 5), (0, 5)), ((1, 3), (1, 3))]
    assert matched(replicates, seeds) == [((0, 5), (None, 5)), ((1, 3), (None, 3)), ((2, 5), (None, 5))]
    assert matched(seeds, replicates) == [((None, 5), (0, 5)), ((None, 3), (1, 3)), ((None, 5), (2, 5))]
    assert matched(seeds, [(0, 3), (0, 7)]) == [((None, 3), (0, 3))]


# Records --------------------------------------------------------------------------------------------------------------


def test_records_come_back_and_labels_alike_have_files_of_their_own(tmp_path: Path) -> None:
    cells = Cells(tmp_path)
    names = ["a b", "a-b", "A b", "../a", "ä" * 300, "x" * 300]
    for number, label in enumerate(names):
        cells.write((label, 1, (0, number)), {"x": torch.tensor([float(number)]), "flag": torch.tensor([True])})
    for number, label in enumerate(names):
        found = cells.read((label, 1, (0, number)))
        assert found is not None
        assert (float(found["x"]), bool(found["flag"])) == (number, True)
    assert len(list((tmp_path / "cells").iterdir())) == len(names)
    assert cells.read(("a b", 2, (0, 0))) is None
    path = cells.path(("a b", 1, (0, 0)))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(FewstepError, match="damaged"):
        cells.read(("a b", 1, (0, 0)))


def quality(found: BenchTable) -> list[tuple[Any, ...]]:
    keys = [(row.label, row.steps, str(row.training), str(row.seed), row.metric, row.value) for row in found.rows]
    return sorted(key for key in keys if not key[4].startswith("seconds"))


def test_a_bench_of_replicates_goes_on_where_rows_or_records_are_missing(table: BenchTable) -> None:
    first = run("again")
    lines = (first.folder / "rows.csv").read_text().splitlines(keepends=True)
    (first.folder / "rows.csv").write_text("".join(line for line in lines if not line.startswith("cm,")))
    Cells(first.folder).path(("vm", 1, (1, 3))).unlink()
    assert quality(run("again", resume=True)) == quality(table)
    assert quality(run("again", resume=True)) == quality(table)


def test_replicates_and_seeds_may_be_added(table: BenchTable) -> None:
    run("grown", students={"vm": "vm-0"}, seeds=[5, 3])
    assert quality(run("grown", resume=True)) == quality(table)


# Differences ----------------------------------------------------------------------------------------------------------


class Recorded(Points):
    """The mean squared distance of each point to the truth: a mean over objects, so that all is known by hand."""

    headline = nearness = "error"
    lower_is_better = frozenset({"error", "apart"})
    charts = ()
    legend: ClassVar = {}

    def record(self, objects: Any, teacher_objects: Any) -> Record:
        error, apart = ((objects - other).square().sum(1) for other in (self.x0[: len(objects)], teacher_objects))
        return {"error": error, "apart": apart, "points": objects}

    def score(self, record: Record, teacher: Record, other: Record | None, counts: Tensor) -> dict[str, Tensor]:
        far = {"other": (record["points"] - other["points"]).square().sum(1)} if other else {}
        found = {"error": record["error"], "apart": record["apart"], **far}
        return {name: mean_resampled(values, counts) for name, values in found.items()}


def trained(seed: int, off: float, label: str) -> tuple[str, Gaussian, StudentInfo]:
    """A student that is too wide by ``off``."""
    return label, Gaussian(off), info("m").model_copy(update={"config": {"seed": seed}})


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    students = [trained(seed, off, "a") for seed, off in enumerate((0.0, 0.1, 0.05))]
    students += [trained(seed, off, "b") for seed, off in enumerate((0.5, 0.7, 0.6))]
    return run_gauss(tmp_path_factory.mktemp("compared") / "out", suite=Recorded(), students=students, steps=(1,))


def errors(found: Bench, label: str, name: str = "error") -> np.ndarray[Any, Any]:
    """[units, objects]"""
    cells, unit = Cells(found.report.folder), [(None if label == "undistilled" else n, n) for n in range(3)]
    records = [cells.read((label, 1, one)) for one in unit]
    return np.stack([record[name].double().numpy() for record in records if record is not None])


@pytest.mark.parametrize(("label", "against"), [("b", "a"), ("a", "undistilled"), ("b", "undistilled")])
def test_a_difference_is_paired_by_training_noise_and_object(compared: Bench, label: str, against: str) -> None:
    (one,) = (d for d in compared.report.differences if (d.label, d.against, d.metric) == (label, against, "error"))
    apart = errors(compared, label) - errors(compared, against)
    assert one.difference == pytest.approx(apart.mean())
    units, objects = apart.mean(1), apart.mean(0)
    parts = [units.var(ddof=1) / 3, objects.var() / COUNT]  # the second is what resampling tends to
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / (COUNT - 1))
    assert one.half == pytest.approx(stats.t.ppf(0.975, freedom) * sum(parts) ** 0.5, rel=0.06)
    assert one.p == pytest.approx(2 * stats.t.sf(abs(apart.mean()) / sum(parts) ** 0.5, freedom), rel=0.5, abs=1e-4)
    assert one.better is bool(apart.mean() < -(one.half or 0))
    nearer = (apart < 0).mean(1)
    assert one.nearer == pytest.approx(nearer.mean())
    assert one.count == 3


def test_p_values_are_adjusted_among_the_methods_of_a_step_count(compared: Bench) -> None:
    found = [d for d in compared.report.differences if (d.metric, d.against) == ("error", "undistilled")]
    assert {d.label: d.p_holm for d in found} == pytest.approx(holm({d.label: d.p for d in found if d.p is not None}))
    (alone,) = (d for d in compared.report.differences if (d.metric, d.against) == ("error", "a"))
    assert alone.p_holm == alone.p


def test_another_reference_is_named_and_checked(compared: Bench, tmp_path: Path) -> None:
    students = [trained(0, off, label) for label, off in (("a", 0.0), ("b", 0.5))]
    options: dict[str, Any] = {"suite": Recorded(), "students": students, "steps": (1,), "seeds": (0, 1)}
    found = run_gauss(tmp_path / "b", against="b", **options)
    assert {(d.label, d.against) for d in found.report.differences} == {
        ("a", "b"), ("a", "undistilled"), ("b", "undistilled")
    }  # fmt: skip
    assert "minus b" in found.text
    with pytest.raises(FewstepError, match=r"unknown --against 'c'.*a, b"):
        run_gauss(tmp_path / "c", against="c", **options)


def test_the_other_noise_is_that_of_the_seed_before(compared: Bench) -> None:
    cells = Cells(compared.report.folder)
    for seed, before in ((0, 1), (1, 0), (2, 1)):
        own, other = (cells.read(("teacher", 25, (None, one))) for one in (seed, before))
        assert own is not None
        assert other is not None
        expected = float((own["points"] - other["points"]).square().sum(1).double().mean())
        (row,) = compared.rows(label="teacher", metric="other", seed=seed)
        assert float(row["value"]) == pytest.approx(expected)


def test_a_gap_s_interval_counts_trainings_and_objects(compared: Bench) -> None:
    u, s = errors(compared, "undistilled", "apart"), errors(compared, "b", "apart")  # the teacher's is 0
    share = (u - s).mean() / u.mean()
    (line,) = (one for one in compared.report.lines if (one.label, one.metric) == ("b", "gap_closed/apart"))
    assert line.value == pytest.approx(share)
    rest = ((u - s) - share * u) / u.mean()
    parts = [rest.mean(1).var(ddof=1) / 3, rest.mean(0).var() / COUNT]
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / (COUNT - 1))
    assert line.half == pytest.approx(stats.t.ppf(0.975, freedom) * sum(parts) ** 0.5, rel=0.06)


def test_a_comparison_pairs_objects_where_both_benches_have_records(compared: Bench, tmp_path: Path) -> None:
    students = [trained(seed, off + 0.1, "a") for seed, off in enumerate((0.0, 0.1, 0.05))]
    options: dict[str, Any] = {"students": students, "steps": (1,), "compare": compared.report.folder / "rows.csv"}
    found = run_gauss(tmp_path / "b", suite=Recorded(), **options)
    with (tmp_path / "b" / "compare.csv").open() as file:
        rows = {(row["label"], row["metric"]): row for row in csv.DictReader(file)}
    row, apart = rows["a", "error"], errors(found, "a") - errors(compared, "a")
    assert row["pairing"] == "paired, objects too"
    assert float(row["difference"]) == pytest.approx(apart.mean())
    parts = [apart.mean(1).var(ddof=1) / 3, apart.mean(0).var() / COUNT]
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / (COUNT - 1))
    assert float(row["half"]) == pytest.approx(stats.t.ppf(0.975, freedom) * sum(parts) ** 0.5, rel=0.06)
    assert rows["teacher", "error"]["moved"] == "no"
    fewer = run_gauss(tmp_path / "c", suite=Recorded(), limit=40, **options)
    assert "by object" not in fewer.text
    assert "by object" in found.text


def test_equal_cost_is_undistilled_at_no_less(compared: Bench) -> None:
    text = (compared.report.folder / "table.md").read_text()
    (line,) = (line for line in text.partition("at equal cost")[2].splitlines() if line.startswith("| b | 1 |"))
    assert "undistilled, 1 step: 2 |" in line  # guided, so of two evaluations; the student has one
    (line,) = (line for line in text.partition("## training")[2].splitlines() if line.startswith("| b |"))
    assert line.split("|")[2].strip() == "3"
    assert line.split("|")[-2].strip() == "0, 1, 2"
