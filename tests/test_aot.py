"""The ahead-of-time gate can fail: at a worse tile, a missing row, a spill. What it compiles is `make aot`."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fewstep_kernels.aot.measure import Measured, faults
from fewstep_kernels.aot.specimen import Specimen
from fewstep_kernels.aot.table import read, worse, write
from fewstep_kernels.tuning import Tile

ROOT = Path(__file__).parent.parent
ROW = Measured("a/b", 90, 200, 0, 65536, 16, 12, 4, 3, "3.6.0")
SPECIMEN = Specimen("a/b", None, {}, {}, Tile({"BLOCK_M": 64}))


def test_a_table_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write(tmp_path / "sm90.csv", [ROW])
    assert read(tmp_path / "sm90.csv") == {"a/b": {key: str(value) for key, value in ROW.row().items()}}
    assert worse(ROW, read(tmp_path / "sm90.csv")["a/b"]) == []
    assert read(tmp_path / "none.csv") == {}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"spills": 3}, "local memory: 0 instructions before, 3 now"),
        ({"matrix": 0}, "matrix instructions: 16 before, none now"),
        ({"registers": 209}, "registers: 200 before, 209 now"),
        ({"shared": 65540}, "shared memory: 65536 bytes before, 65540 now"),
    ],
)
def test_a_worse_tile_is_named(change: dict[str, int], complaint: str) -> None:
    assert worse(replace(ROW, **change), ROW.row()) == [complaint]


def test_noise_of_the_compiler_and_improvements_pass() -> None:
    assert worse(replace(ROW, registers=208, shared=60000, matrix=8), ROW.row()) == []
    assert worse(ROW, None) == ["not in the table (run without --check)"]


def test_what_a_shipped_tile_must_not_do() -> None:
    assert faults(ROW, SPECIMEN) == []
    assert faults(replace(ROW, spills=2), SPECIMEN) == ["2 instructions on local memory"]
    assert faults(replace(ROW, matrix=0), SPECIMEN) == ["no HGMMA instruction"]
    assert faults(replace(ROW, shared=232_449), SPECIMEN) == ["232449 bytes of shared memory, over 232448"]
    assert faults(replace(ROW, spills=2), replace(SPECIMEN, needs=frozenset({"matrix"}))) == []


def gate(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "FEWSTEP_OPS")}
    command = [sys.executable, "-m", "fewstep_kernels.aot", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment, cwd=ROOT, check=False)


def test_the_gate_fails_at_a_table_that_is_better_than_the_kernels(tmp_path: Path) -> None:
    """One family, so that it takes seconds."""
    pytest.importorskip("triton")
    committed = read(ROOT / "benchmarks/kernels/aot/sm90.csv")
    rows = [
        Measured(**{k: v if k in ("name", "triton") else int(v) for k, v in row.items()}) for row in committed.values()
    ]
    name = "convolution-convolve/fp16/128/128-128-64-w8-s3"
    better = [replace(row, registers=row.registers - 20) if row.name == name else row for row in rows]
    write(tmp_path / "sm90.csv", better)
    done = gate("--family", "convolution", "--check", "--tables", str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"sm_90 {name}: registers:")


def test_every_shipped_tile_is_in_the_table() -> None:
    pytest.importorskip("triton")
    script = "from fewstep_kernels.aot.__main__ import specimens; print(*specimens(), sep='\\n')"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    shipped = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
    )
    assert set(shipped.stdout.split()) == set(read(ROOT / "benchmarks/kernels/aot/sm90.csv"))


def test_bad_architecture() -> None:
    done = gate("--arch", "75")
    assert done.returncode == 2
    assert "--arch: got 75; accepted: 80, 90, 120" in done.stderr
