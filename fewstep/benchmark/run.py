"""``run_bench``: measure cell after cell, summarise, write the report.

A cell is one entrant (teacher, undistilled network, or student) at one step count under one seed.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fewstep.benchmark.compare import compare as compared
from fewstep.benchmark.compare import unlike
from fewstep.benchmark.config import BenchConfig
from fewstep.benchmark.entrants import Entrant, Stage, line_up
from fewstep.benchmark.measurement import Measurement
from fewstep.benchmark.report import BenchTable, tabulate
from fewstep.benchmark.rows import EXTRA, FLOW, ROWS, Row, csv_file, read_rows
from fewstep.benchmark.summary import seconds
from fewstep.config.run import versions
from fewstep.engine.device import pick_device
from fewstep.engine.folder import occupied
from fewstep.engine.progress import counting
from fewstep.errors import FewstepError


def run_bench(
    name: str,
    stages: Sequence[Stage],
    students: Sequence[Entrant],
    config: BenchConfig,
    out: Path,
    *,
    compare: Path | None = None,
    console: Console | None = None,
) -> BenchTable:
    """Measure ``students`` by steps by seeds, with the teacher and its undistilled network.

    Writes ``rows.csv`` (row by row, so that a bench that is killed leaves what it measured), ``summary.csv``,
    ``table.md``, ``chart.png``, ``sheet.png``, ``environment.json`` and, with ``compare``, ``compare.csv``.

    Args:
        name: of what is measured, for the record.
        stages: each samples on what the one before it decoded; the objects of the last one are measured.
        students: with a model for each stage.
        out: must not exist, or be empty.
        compare: ``rows.csv`` of an earlier bench.
        console: shows the progress.

    Raises:
        FewstepError: for an ``out`` that is occupied, a label twice, stages with other prompts, or an unusable
            ``compare``.
    """
    cells = line_up(stages, students, config.steps, config.teacher_steps)
    old = read_rows(compare) if compare is not None else None
    console, began = console or Console(), time.monotonic()
    measurement = Measurement(stages, config.seeds, config.limit, pick_device(config.device, "device"))
    suite, samples = measurement.suite, measurement.samples
    same = {"backbone": name, "samples": samples, "machine": machine(measurement.device)}
    packages = "; ".join(f"{package} {version}" for package, version in versions().items())
    rows: list[Row] = []
    _claim(out)
    try:
        with csv_file(out / ROWS, Row, EXTRA, none="") as write_row, counting(console, every=0.0) as progress:

            def keep(found: Sequence[Row]) -> None:
                for row in found:
                    write_row(row, {**same, "versions": packages})
                rows.extend(found)

            for number, found in enumerate(measurement.cells(cells), 1):
                keep(found)
                progress(number, len(config.seeds) * len(cells), _shown(found, suite.headline))
            keep(measurement.references())
    finally:
        if not rows:
            (out / ROWS).unlink()
            with suppress(OSError):  # other files may lie there
                out.rmdir()
    record = {
        **same,
        "versions": versions(),
        "seeds": list(config.seeds),
        "steps": list(config.steps),
        "teacher": _recorded(cells[0][0]),
        "students": [_recorded(one) for one in students],
        "seconds": round(time.monotonic() - began, 1),
        "command": sys.argv,
    }
    (out / "environment.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    table = tabulate(out, suite, rows, record)
    if old is not None:
        table.add_changes(compared(old, rows), unlike(old, same))
    table.write(suite, measurement.shown, min(config.columns, samples))
    return table


def _claim(out: Path) -> None:
    if occupied(out):
        raise FewstepError(f"--out: {str(out)!r} exists; accepted: a folder that does not, nothing is overwritten")
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ROWS).touch()
    except OSError as error:
        raise FewstepError(f"--out: got {str(out)!r}; accepted: a folder to write to ({error.strerror})") from None


def _shown(rows: Sequence[Row], headline: str) -> str:
    """A cell in the progress display: what it is of, its headline measure and its time."""
    first, values = rows[0], {row.metric: row.value for row in rows}
    measured = f"  {headline} {values[headline]:.4g}" if headline in values else ""
    flow = f"{1000 * seconds(rows, FLOW):.3g} ms"
    return f"seed {first.seed}  {first.label}  {first.steps} step{'s' * (first.steps > 1)}{measured}  flow {flow}  cell"


def _recorded(entrant: Entrant) -> dict[str, Any]:
    """An entrant as JSON: its contract, what a student cost, and under "then" the same of the stages that follow."""
    record: dict[str, Any] = {}
    for model in reversed(entrant.models):
        values = {"label": entrant.label, "method": entrant.method, "contract": model.contract.model_dump(mode="json")}
        if model.info is not None:
            values["method"] = model.info.method
            values |= {name: getattr(model.info, name) for name in ("step", "seconds", "budget", "weights")}
        record = {**values, "then": record} if record else values
    return record


def machine(device: torch.device) -> str:
    """Processor (and accelerator), cores usable here and torch's threads: ``AMD EPYC, 2 cores, 2 threads``."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    info = Path("/proc/cpuinfo")  # where platform.processor() says no more than the architecture
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    text = (
        f"{[*models, platform.processor() or platform.machine()][0]}, {cores} cores, {torch.get_num_threads()} threads"
    )
    return f"{torch.cuda.get_device_name(device)} on {text}" if device.type == "cuda" else text
