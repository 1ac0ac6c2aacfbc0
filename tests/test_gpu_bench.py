"""The GPU benchmark where no GPU is: what it counts, how it judges, what it writes, and a dry run of a part of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch
from fewstep_shapes3d.sparse.geometry import pooling

from benchmarks.gpu import installed, report, rows, targets
from benchmarks.gpu.bench import BROKEN, Bench, remarks
from benchmarks.gpu.measure import host_bound
from benchmarks.gpu.plan import KERNELS, SECTIONS, TOTAL, WHOLE, allowance, chosen, takes, waves
from benchmarks.gpu.rows import FAILED, MEASURED, NOT_YET, RIGHT, WRONG, Book, Row
from benchmarks.gpu.run import carry, prepare
from benchmarks.gpu.sections.pipeline import faster
from benchmarks.gpu.targets import BY_KEY, TARGETS
from benchmarks.gpu.times import Deadline, Timing
from benchmarks.gpu.voxels import shell, voxels_for
from benchmarks.gpu.work import Roof, attention_bytes, attention_flops, convolution_flops
from fewstep.core.layout import Packed
from fewstep.errors import FewstepError

ROOT = Path(__file__).parents[1]


def timed(target: str, status: str = MEASURED, **numbers: float) -> Row:
    row = Row("attention", "varlen_attention", "forward", "self 8192", "float16", "k", "ours", target=target)
    row = replace(row, status=status, device="NVIDIA H200", commit="abc", versions="torch 2.11", date="2026-11-23")
    return replace(row, **numbers)  # type: ignore[arg-type]


def test_operations_are_counted_by_the_closed_forms() -> None:
    # Two samples: 3 x 5 and 2 x 7 pairs, twice two operations for each of 4 x 8 channels.
    assert attention_flops([3, 2], [5, 7], 4, 8) == 4 * (15 + 14) * 32
    assert attention_flops([3], [5], 1, 1, "backward") == 2.5 * 60
    assert attention_bytes(10, 20, 2, 4, 2) == (10 + 10 + 20 + 20) * 8 * 2
    assert convolution_flops(7, 3, 5, "forward+backward") == 3 * 2 * 7 * 15
    roof = Roof({"float16": 800.0}, 4000.0)
    assert roof.share(800e9, 0, "float16", 2.0) == pytest.approx(0.5)  # 1 ms of products in 2
    assert roof.share(800e9, 8e9, "float16", 4.0) == pytest.approx(0.5)  # 2 ms of traffic
    assert roof.share(1.0, 1.0, "float16", 0.0) is None
    assert Roof().share(1e9, 0, "float16", 1.0) is None


def test_percentiles() -> None:
    assert Timing.of([4.0, 1.0, 3.0, 2.0, 10.0]) == Timing(3.0, pytest.approx(1.8), pytest.approx(5.2), 5)  # type: ignore[arg-type]
    assert Timing.of([2.0], [0.5, 0.7, 0.9]).host == 0.7
    assert [host_bound(Timing(1.0, 1.0, 1.0, 1, host)) for host in (None, 0.2, 0.9)] == [False, False, True]


@pytest.mark.parametrize(
    ("key", "values", "value", "verdict"),
    [
        ("varlen-forward", [1.3, 1.1], 1.1, "floor held"),  # every length: the worst counts
        ("varlen-forward", [1.3, 1.25], 1.25, "goal reached"),
        ("varlen-forward", [1.3, 0.99], 0.99, "below the floor"),
        ("tangent", [2.9, 3.5], 3.5, "floor held"),  # less is better
        ("varlen-forward-fa3", [0.7], 0.7, "below the goal"),
        ("ss-flow", [10.4], 10.4, "goal reached"),
        ("varlen-forward-rate", [350.0, 410.0], 410.0, "goal reached"),  # somewhere: the best counts
    ],
)
def test_verdicts(key: str, values: list[float], value: float, verdict: str) -> None:
    field = {"x": "ratio", "ms": "median_ms", "TFLOP/s": "tflops"}[BY_KEY[key].unit]
    found = BY_KEY[key].value([timed(key, **{field: v}) for v in values])
    assert found == (value, len(values))
    assert BY_KEY[key].verdict(found[0]) == verdict


def test_what_was_not_measured_is_not_claimed(tmp_path: Path) -> None:
    book = Book(tmp_path / "rows.csv", {"device": "CPU (dry run)"}, dry=True)
    book.add(timed("ss-flow", median_ms=1.0, ratio=9.0, error=1e-7), timed("", RIGHT, error=1e-7))
    dry, right = rows.read(book.path)
    assert (dry.status, dry.median_ms, dry.ratio, dry.error) == (NOT_YET, None, None, 1e-7)
    assert right.status == RIGHT
    assert {line["verdict"] for line in targets.table([dry])} == {NOT_YET}
    assert NOT_YET in report.markdown([dry])
    assert "claimed" in report.markdown([])


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    book = Book(tmp_path / "rows.csv")
    row = timed("tangent", ratio=3.25, median_ms=0.5)
    book.add(row)
    book.add(Row("s", "o", 'a "word", and\nanother', status=FAILED))
    assert rows.read(book.path)[0] == row
    assert rows.read(book.path)[1].what == 'a "word", and another'
    with pytest.raises(FewstepError, match="status"):
        book.add(Row("s", "o", "w", status="splendid"))
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(FewstepError, match="columns"):
        rows.read(tmp_path / "other.csv")


def test_the_report_fills_the_readme_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book, readme = Book(tmp_path / "rows.csv"), tmp_path / "README.md"
    book.add(timed("varlen-forward", ratio=1.3, tflops=400.0))
    readme.write_text(f"before\n{report.BEGIN}\nstale\n{report.END}\nafter\n")
    assert report.main([str(book.path), "--into", str(readme), "--chart", str(tmp_path / "c.png")]) == 0
    text = readme.read_text()
    assert "| 1x | 1.25x | 1.3x | goal reached |" in text
    assert "NVIDIA H200, torch 2.11, commit abc" in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale" not in text
    assert report.series(rows.read(book.path), "forward") == {"k": ([(8192, 400.0)], True)}
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    readme.write_text("no markers")
    assert report.main([str(book.path), "--into", str(readme)]) == 2
    assert "error: --into" in capsys.readouterr().err
    assert readme.read_text() == "no markers"


def test_a_kernel_that_was_wrong_is_not_timed() -> None:
    def check(kernel: str, status: str, error: float | None) -> Row:
        return Row("correct", "op", "output", "s", "float16", kernel, "ours", status=status, error=error)

    found = remarks(
        [check("a", RIGHT, 1e-4), check("b", WRONG, 5e-3), check("c", WRONG, 0.5), check("d", FAILED, None)]
    )
    assert found["op", "a", "float16"] == ""
    assert "beyond its bound" in found["op", "b", "float16"]
    assert {found["op", kernel, "float16"] for kernel in "cd"} == {BROKEN}


def test_each_half_ends_within_five_minutes() -> None:
    for half in (KERNELS, WHOLE):
        assert sum(takes(wave) for wave in waves(chosen(half, None))) <= TOTAL <= 300
    assert chosen(WHOLE, None) == ["environment", "pipeline", "train"]
    assert chosen(WHOLE, None, done=["environment"]) == ["pipeline", "train"]
    assert sorted(set(chosen(KERNELS, None)) | set(chosen(WHOLE, None))) == sorted(s.name for s in SECTIONS)
    assert [s.name for wave in waves(["norms", "environment"]) for s in wave] == ["environment", "norms"]
    first, *rest = waves(chosen(KERNELS, None))
    assert allowance(first, rest, TOTAL) == TOTAL - sum(map(takes, rest))  # what others leave
    assert allowance(first, rest, 20.0) == 20.0  # too little: those that come first have it
    assert {s.module for s in SECTIONS} <= {p.stem for p in (ROOT / "benchmarks/gpu/sections").glob("*.py")}


def test_voxels_are_a_surface() -> None:
    cells = shell(5000)
    assert len(cells.unique(dim=0)) == 5000
    layout = Packed.of_lengths([voxels_for(1000)], shell(voxels_for(1000)))
    assert abs(pooling(layout).coarse.rows - 1000) <= 64


def test_a_tree_counts_as_installed(tmp_path: Path) -> None:
    found = metadata.Distribution.at(installed.write(tmp_path))
    assert found.metadata["Name"] == "fewstep"
    assert {p.name for p in found.entry_points.select(group="fewstep")} >= {"mdt", "trellis", "kernels"}


def test_a_dry_run(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "PYTHON": sys.executable, "SCRATCH": str(tmp_path / "s"), "WHEELS": "none"}
    out = tmp_path / "out"
    command = ["benchmarks/gpu/run.sh", "--dry-run", "--only", "environment", "norms", "--out", str(out)]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False, timeout=200
        )

    done = run()
    assert done.returncode == 0, done.stderr
    found = rows.read(out / "rows.csv")
    assert {r.status for r in found} <= {NOT_YET, "skipped"}, (out / "log.txt").read_text()
    assert {r.op for r in found if r.kernel.startswith("triton")} == {"qk_rms_norm", "modulated_norm", "gated_residual"}
    assert all(r.median_ms is None for r in found)
    assert len((out / "targets.csv").read_text().splitlines()) == 1 + len(TARGETS)
    assert "torch" in json.loads((out / "environment.json").read_text())["versions"]


def test_the_halves_share_a_folder_and_nothing_is_measured_twice(tmp_path: Path) -> None:
    assert prepare(tmp_path, KERNELS, ["environment", "norms", "train"]) == ["environment", "norms"]
    book = Book(tmp_path / "rows.csv")
    book.add(timed("", NOT_YET))
    assert prepare(tmp_path, KERNELS, ["norms"]) == ["norms"]
    assert rows.read(book.path) == []  # a dry run's rows make way
    book.add(*(replace(timed("", median_ms=1.0), section=name) for name in ("environment", "norms")))
    assert prepare(tmp_path, WHOLE, None) == ["pipeline", "train"]
    assert len(rows.read(book.path)) == 2
    with pytest.raises(FewstepError, match=r"--out.*without measured rows of norms"):
        prepare(tmp_path, KERNELS, ["norms"])
    book.add(replace(timed("", FAILED), section="train"))
    before = [row for row in rows.read(book.path) if row.section != "train"]
    assert prepare(tmp_path, WHOLE, ["train"]) == ["train"]
    assert rows.read(book.path) == before  # a second attempt's rows take the place of the first's


def test_the_halves_of_a_dry_run_share_a_folder_too(tmp_path: Path) -> None:
    book = Book(tmp_path / "rows.csv")
    for half, names in ((KERNELS, ["environment", "norms"]), (WHOLE, ["environment", "train"])) * 2:
        assert prepare(tmp_path, half, names, dry=True) == names
        book.add(*(replace(timed("", NOT_YET, error=0.00012345), section=name) for name in names))
    found = rows.read(book.path)
    assert sorted(row.section for row in found) == ["environment", "norms", "train"]
    assert {row.error for row in found} == {0.00012345}
    assert prepare(tmp_path, KERNELS, ["norms"]) == ["norms"]
    assert rows.read(book.path) == []  # nothing of a dry run stays beside what is measured


def test_tiles_are_carried_along(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/h100.json").write_text("{}")
    carry(tmp_path / "none", tmp_path / "out")
    carry(tmp_path / "cache", tmp_path / "out/tiles")
    assert [path.name for path in (tmp_path / "out").rglob("*.json")] == ["h100.json"]


def test_rows_of_november_are_read() -> None:
    found = rows.read(ROOT / "benchmarks/results/h100-4a48767/rows.csv")
    assert {row.mode for row in found} == {"eager"}
    assert all(row.host_ms is None for row in found)


def test_few_steps_are_compared_with_the_teachers(tmp_path: Path) -> None:
    bench = Bench("pipeline", torch.device("cpu"), False, Book(tmp_path / "rows.csv"), Deadline(1.0))
    teacher = replace(timed("", median_ms=900.0), kernel="ours")
    faster(bench, teacher, 60.0, 1, "speed-1")
    faster(bench, teacher, None, 2, "speed-2")  # not measured: no row
    (row,) = rows.read(bench.book.path)
    assert (row.ratio, row.median_ms, row.peer) == (15.0, 60.0, "25 x 2 steps")
    assert BY_KEY["speed-1"].verdict(BY_KEY["speed-1"].value([row])[0]) == "goal reached"
