"""Replicates of a method, the records of its cells, and what is computed from them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fewstep.benchmark.api import BenchTable, bench
from fewstep.benchmark.cells import Cells
from fewstep.benchmark.resampling import matched
from fewstep.benchmark.rows import Row
from fewstep.cli import main
from fewstep.errors import FewstepError

SMALL = ("train.steps=3", "train.batch_size=8", "backbone.pretrain=0", "backbone.width=8", "train.threads=1")
CONFIG: dict[str, Any] = {"teacher_steps": 3, "device": "cpu", "data": {"size": 64, "held_out": 40}}


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Three trainings of one method in ``vm-0`` to ``vm-2`` and one of another in ``cm``, of a few iterations."""
    with pytest.MonkeyPatch.context() as patch:
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


@pytest.mark.parametrize("given", [["vm-0", "vm-1", "vm-2"], "vm-[012]", ["vm-0", "vm-[12]"]])
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
    took = [sum(n for kinds in info["budget"].values() for n in kinds.values()) for info in infos]
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


def test_units_that_share_their_noise() -> None:
    replicates, seeds = [(0, 5), (1, 3), (2, 5)], [(None, 5), (None, 3)]
    assert matched(replicates, replicates[:2]) == [((0, 5), (0, 5)), ((1, 3), (1, 3))]
    assert matched(replicates, seeds) == [((0, 5), (None, 5)), ((1, 3), (None, 3)), ((2, 5), (None, 5))]
    assert matched(seeds, replicates) == [((None, 5), (0, 5)), ((None, 3), (1, 3)), ((None, 5), (2, 5))]
    assert matched(seeds, [(0, 3), (0, 7)]) == [((None, 3), (0, 3))]


# Records --------------------------------------------------------------------------------------------------------------


def test_records_come_back_and_labels_alike_have_files_of_their_own(tmp_path: Path) -> None:
    import torch

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
