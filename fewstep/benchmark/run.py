"""``run_bench``: measure cell after cell, summarise, write the report.

A cell is one entrant (teacher, undistilled network, or student) at one step count under one seed.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import rich.console
import torch

from fewstep.benchmark import compare as comparing
from fewstep.benchmark.config import BenchConfig
from fewstep.benchmark.entrants import Entrant, Stage, line_up
from fewstep.benchmark.measurement import Measurement
from fewstep.benchmark.report import BenchTable, tabulate
from fewstep.benchmark.rows import FLOW, Row, write_csv
from fewstep.benchmark.summary import seconds
from fewstep.config.run import versions
from fewstep.console import Console
from fewstep.engine.device import pick_device
from fewstep.engine.folder import locked, occupied
from fewstep.engine.progress import counting
from fewstep.errors import FewstepError
from fewstep.files import write_file, write_json


def run_bench(
    name: str,
    stages: Sequence[Stage],
    students: Sequence[Entrant],
    config: BenchConfig,
    out: Path,
    *,
    compare: Path | None = None,
    console: rich.console.Console | None = None,
) -> BenchTable:
    """Measure ``students`` by steps by seeds, with the teacher and its undistilled network, and write the report.

    Args:
        name: of what is measured, for the record.
        stages: each samples on what the one before it decoded; the objects of the last one are measured.
        students: with a model for each stage.
        out: must not exist, or be empty. A bench that is killed leaves in ``rows.csv`` what it measured.
        compare: ``rows.csv`` of an earlier bench.

    Raises:
        FewstepError: for an ``out`` that is occupied, a label twice, stages with other prompts, or an unusable
            ``compare``.
    """
    cells = line_up(stages, students, config.steps, config.teacher_steps)
    old = comparing.read_rows(compare) if compare is not None else None
    console, began = console or Console(), time.monotonic()
    measurement = Measurement(stages, config.seeds, config.limit, pick_device(config.device, "device"))
    suite, samples = measurement.suite, measurement.samples
    same = {"backbone": name, "samples": samples, "machine": machine(measurement.device)}
    packages = "; ".join(f"{package} {version}" for package, version in versions().items())
    total, rows = len(config.seeds) * len(cells), list[Row]()

    def records() -> Iterator[dict[str, Any]]:
        with counting(console, every=0.0) as progress:
            progress(0, total, "warming up")
            for number, found in enumerate(measurement.run(cells), 1):
                rows.extend(found)
                yield from ({**asdict(row), **same, "versions": packages} for row in found)
                if number <= total:
                    progress(number, total, _shown(found, suite.headline))

    if occupied(out):
        raise FewstepError(f"--out: {str(out)!r} exists; accepted: a folder that does not, nothing is overwritten")
    with locked(out):
        write_file(out / "rows.csv", "")  # refuses a read-only folder before anything is measured
        try:
            write_csv(out / "rows.csv", Row, records(), (*same, "versions"), none="")
        finally:
            if not rows:
                (out / "rows.csv").unlink()
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
    write_json(out / "environment.json", record)
    table = tabulate(out, suite, rows, record)
    if old is not None:
        table.add_changes(comparing.compare(old, rows), comparing.unlike(old, same))
    table.write(suite, measurement.shown, min(config.columns, samples))
    return table


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
