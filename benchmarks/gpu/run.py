"""The whole benchmark, started by ``benchmarks/gpu/run.sh`` with everything on the path. Imports no torch."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu import report, targets
from benchmarks.gpu.plan import KERNELS, SECTIONS, TOTAL, WHOLE, Section, allowance, chosen, waves
from benchmarks.gpu.rows import FAILED, MEASURED, OUT_OF_TIME, SKIPPED, Book, Row, read
from benchmarks.gpu.times import Deadline
from fewstep.errors import FewstepError, invalid

ROWS, LOG, TILES, RESULTS = "rows.csv", "log.txt", "tiles", Path("benchmarks/results")
GRACE, LEAST = 6.0, 12.0  # seconds: for a section to end by itself before it is stopped; below which none is begun


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/gpu/run.sh", description="The GPU benchmark, in two halves.")
    parser.add_argument("--half", choices=(KERNELS, WHOLE), help="run only this half; two calls may share a folder")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU with small shapes; nothing counts as measured")
    parser.add_argument("--out", type=Path, help="folder of the results (default: benchmarks/results/gpu, or dry-run)")
    parser.add_argument("--seconds", type=float, help=f"time limit of the run (default: {TOTAL:.0f} per half)")
    parser.add_argument("--only", nargs="+", choices=[s.name for s in SECTIONS], help="run only these sections")
    given = parser.parse_args()
    out: Path = given.out or RESULTS / ("dry-run" if given.dry_run else "gpu")
    try:
        names = prepare(out, given.half, given.only, given.dry_run)
    except FewstepError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a stopped run still ends with its tables
    left = Deadline(given.seconds or TOTAL * (1 if given.half else 2))
    carry(out / TILES, cached_tiles())
    try:
        rest = waves(names)
        while rest:
            wave, rest = rest[0], rest[1:]
            run_wave(wave, allowance(wave, rest, left.left), out, given.dry_run)
    finally:
        carry(cached_tiles(), out / TILES)
        conclude(out)
    return 0


def prepare(out: Path, half: str | None, only: Sequence[str] | None, dry: bool = False) -> list[str]:
    """Make the folder, and choose the sections to run.

    Rows of the other half are kept; rows of an earlier attempt at the same sections are dropped. A real run drops all
    rows of a dry run, whatever their section.

    Raises:
        FewstepError: if a section was measured before.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows = read(out / ROWS) if (out / ROWS).is_file() else []
    measured = {row.section for row in rows if row.status == MEASURED}
    names = chosen(half, only, sorted(measured))
    if again := sorted(measured & set(names)):
        raise invalid("--out", str(out), f"a folder without measured rows of {', '.join(again)}")
    kept = [row for row in rows if row.section not in names] if dry or measured else []
    if not kept:
        (out / LOG).unlink(missing_ok=True)
    if len(kept) < len(rows):
        fresh = out / f"{ROWS}.tmp"  # replaced atomically: measured rows are always on disk
        fresh.unlink(missing_ok=True)
        Book(fresh).add(*kept)
        fresh.replace(out / ROWS)
    return names


def cached_tiles() -> Path:
    """Where the kernels cache autotuned tiles; ``run.sh`` sets FEWSTEP_CACHE."""
    return Path(os.environ.get("FEWSTEP_CACHE") or RESULTS / "cache") / TILES


def carry(source: Path, target: Path) -> None:
    """Copy autotuned tiles, so that the other half, or another machine of this kind, need not measure them again."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)


def run_wave(wave: Sequence[Section], seconds: float, out: Path, dry: bool) -> None:
    """Start every section of a wave and wait for all; one that does not end in time is stopped, and gets a row."""
    book = Book(out / ROWS)
    if seconds < LEAST:
        book.add(*(Row(s.name, "all", "section", status=SKIPPED, note=OUT_OF_TIME) for s in wave))
        return
    began = time.time()
    with (out / LOG).open("ab") as log:
        started = [(section, _start(section, began + seconds - GRACE, out, dry, log)) for section in wave]
        try:
            for section, process in started:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.1, began + seconds - time.time()))
                if process.poll() is None:
                    note = f"{OUT_OF_TIME}: stopped after {seconds:.0f} s"
                    book.add(Row(section.name, "all", "section", status=SKIPPED, note=note))
                elif process.returncode:
                    note = f"exit code {process.returncode}; {last_line(out / LOG)}"
                    book.add(Row(section.name, "all", "section", status=FAILED, note=note))
                print(f"{section.name}: {time.time() - began:.0f} s, exit code {process.returncode}", flush=True)
        finally:
            for _, process in started:
                process.kill()
                process.wait()


def _start(section: Section, until: float, out: Path, dry: bool, log: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.gpu.section", section.name, "--out", str(out), "--until", str(until)]
    # Sections of a wave share the GPU, where autotuning would measure noise: correctness uses the default tiles.
    environment = os.environ | ({"FEWSTEP_AUTOTUNE": "0"} if section.module == "correct" else {})
    return subprocess.Popen(command + ["--dry-run"] * dry, stdout=log, stderr=log, env=environment)  # type: ignore[call-overload,no-any-return]


def last_line(log: Path) -> str:
    """The last line of the log: the error of a process that has just failed."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:160] if lines else ""


def conclude(out: Path) -> None:
    """Write tables and chart from whatever rows there are; prints the short table."""
    rows = read(out / ROWS) if (out / ROWS).is_file() else []
    targets.write(out / "targets.csv", rows)
    (out / "table.md").write_text(report.markdown(rows) + "\n", encoding="utf-8")
    try:
        report.chart(rows, out / "chart.png")
    except Exception as error:  # a failed chart must not cost the tables
        print(f"no chart: {error}")
    text = report.plain(rows)
    (out / "summary.txt").write_text(text + "\n", encoding="utf-8")
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
