"""``run_bench``: measure cell after cell, summarise, write the report.

A cell is one entrant (teacher, undistilled network, or student) at one step count under one seed.
"""

from __future__ import annotations

import os
import platform
import shutil
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
from fewstep.benchmark.cells import Cells, Scorer
from fewstep.benchmark.config import BenchConfig
from fewstep.benchmark.entrants import RESERVED, TEACHER, UNDISTILLED, Entrant, Stage, line_up
from fewstep.benchmark.measurement import Measurement
from fewstep.benchmark.plan import RECORD, Todo, measured, remaining
from fewstep.benchmark.progress import CellProgress
from fewstep.benchmark.report import BenchTable
from fewstep.benchmark.resampling import resample
from fewstep.benchmark.rows import FLOW, Row, read_rows, write_csv
from fewstep.benchmark.summary import seconds
from fewstep.benchmark.tables import milliseconds
from fewstep.benchmark.tabulate import tabulate
from fewstep.config.run import versions
from fewstep.console import Console, number_of, spinner
from fewstep.engine.device import pick_device
from fewstep.engine.folder import locked, occupied
from fewstep.errors import FewstepError, noted, unknown
from fewstep.files import Unwritable, write_json
from fewstep.words import number


def run_bench(
    name: str,
    stages: Sequence[Stage],
    students: Sequence[Entrant],
    config: BenchConfig,
    out: Path,
    *,
    compare: Path | None = None,
    console: rich.console.Console | None = None,
    resume: bool = False,
    report: bool = False,
) -> BenchTable:
    """Measure ``students`` by steps and seeds, with the teacher and its undistilled network, and write the report.

    ``out``, ``compare``, ``resume`` and ``report`` are those of ``fewstep.bench``.

    Args:
        name: name of what is measured, for the record.
        stages: each samples on what the one before it decoded; the objects of the last one are measured.
        students: with a model for each stage.

    Raises:
        FewstepError: for an ``out`` that is occupied, a label that is used twice, stages whose prompts differ, an
            unusable ``compare``, or a bench of other settings to resume.
    """
    cells = line_up(stages, students, config.steps, config.teacher_steps)
    reference = _reference(config.against, cells)
    old = read_rows(compare) if compare is not None else None
    if occupied(out) and not resume:
        raise FewstepError(
            f"--out: {str(out)!r} exists; accepted: a folder that does not, nothing is overwritten; or --resume to "
            "continue the bench in it"
        )
    console, began = console or Console(), time.monotonic()
    scorer = Scorer(stages[-1].suite, Cells(out), config.seeds, config.teacher_steps)
    measurement = Measurement(stages, config.seeds, config.limit, pick_device(config.device, "device"), scorer)
    suite, samples = measurement.suite, measurement.samples
    same = {"backbone": name, "samples": samples, "machine": machine(measurement.device)}
    record: dict[str, Any] = {
        **same,
        "versions": versions(),
        "seeds": list(config.seeds),
        "steps": list(config.steps),
        "teacher": _recorded(cells[0][0]),
        "students": [_recorded(e) for e in dict.fromkeys(entrant for entrant, _ in cells) if e.training is not None],
        "command": sys.argv,
    }
    kept, record = measured(out, record) if resume else ([], record)
    scorer.order = list(record["seeds"])
    todos, kept, whole = remaining(cells, config.seeds, scorer, kept)
    rows = [row for row, _ in kept]
    with locked(out):
        write_json(out / RECORD, record)  # refuses a read-only folder before anything is measured
        try:
            extra = {**same, "versions": "; ".join(f"{package} {version}" for package, version in versions().items())}
            new = ({**asdict(row), **extra} for row in _measured(measurement, todos, not whole, rows, console))
            write_csv(out / "rows.csv", Row, new, tuple(extra), none="", kept=[line for _, line in kept])
        except Unwritable as error:
            raise FewstepError(f"{error}; the rows before it are kept, --resume goes on from them") from error
        finally:
            if not rows:
                for path in (out / "rows.csv", out / RECORD):
                    path.unlink(missing_ok=True)
                shutil.rmtree(scorer.cells.folder, ignore_errors=True)
                with suppress(OSError):  # the folder may hold other files
                    out.rmdir()
        write_json(out / RECORD, {**record, "seconds": round(time.monotonic() - began, 1)})
    _as_asked(rows, cells)
    recorded = list(dict.fromkeys(row.cell for row in rows)) if suite.keeps_records else []
    draws = resample(scorer, recorded, config.resamples, console)
    table = tabulate(out, suite, rows, record, draws, reference)
    try:
        if old is not None and compare is not None:
            before = comparing.resampled(compare, scorer, draws, console) if recorded else None
            table.add_changes(comparing.compare(old, rows, draws, before), comparing.unlike(old, same))
        with spinner(console, f"{name}: drawing"):
            table.write(suite, measurement.shown, min(config.columns, samples), report)
    except Unwritable as error:
        table.show(console)
        rest = f"every measurement is in {out / 'rows.csv'}, --resume writes the rest of the report"
        raise FewstepError(f"{error}; {rest}") from error
    return table


def _reference(against: str, cells: Sequence[tuple[Entrant, int]]) -> str:
    """The label that the others are compared with. Raises FewstepError for one that is not measured."""
    labels = list(dict.fromkeys(entrant.label for entrant, _ in cells if entrant.label not in RESERVED))
    if against and against not in labels:
        raise unknown("--against", against, labels)
    return against or (labels[0] if labels else UNDISTILLED)


def _as_asked(rows: list[Row], cells: Sequence[tuple[Entrant, int]]) -> None:
    """Sort the rows of a resumed bench: labels in the order of this call, then all others as they were."""
    place = {label: at for at, label in enumerate(dict.fromkeys(entrant.label for entrant, _ in cells))}
    rows.sort(key=lambda row: place.get(row.label, len(place)))


def _measured(
    measurement: Measurement, todos: Sequence[Todo], references: bool, rows: list[Row], console: rich.console.Console
) -> Iterator[Row]:
    """Measure cell after cell, and finally the references. Rows are yielded and also appended to ``rows``."""
    progress = CellProgress(console, [measurement.expected(todo.entrant, todo.steps) for todo in todos])
    teachers = sum(todo.entrant.label == TEACHER for todo in todos) if measurement.keeps_records else 0
    try:
        measurement.prepare(dict.fromkeys(todo.entrant for todo in todos))
        measurement.tick = progress.tick
        for number, todo in enumerate(todos, 1):
            which = f", training {todo.entrant.training}" if todo.entrant.training else ""
            what = f"{todo.entrant.label}{which}, {number_of(todo.steps, 'step')}"
            progress.begin(f"seed {todo.seed}  {what}")
            began = measurement.sampling
            with noted(f"while measuring {what}, seed {todo.seed}"):
                of_cell = measurement.cell(todo.entrant, todo.steps, todo.seed, todo.known)
            written = measurement.teacher_rows() if number == teachers else of_cell
            rows += written
            yield from written
            shown = _shown(of_cell, measurement.suite.headline) or ("drawn again" if todo.known else "sampled")
            progress.end(shown, measurement.sampling - began)
    finally:
        progress.stop()
    if references:
        of_references = measurement.references()
        rows += of_references
        yield from of_references


def _shown(rows: Sequence[Row], headline: str) -> str:
    """A cell in the progress display: its headline measure and its time; "" without rows."""
    if not rows:
        return ""
    values = {row.metric: row.value for row in rows}
    measured = f"{headline} {number(values[headline])}  " if headline in values else ""
    return f"{measured}flow {milliseconds(seconds(rows, FLOW))} ms"


def _recorded(entrant: Entrant) -> dict[str, Any]:
    """An entrant as JSON: its contract, what a student cost, and under "then" the same for the stage that follows."""
    record: dict[str, Any] = {}
    for model in reversed(entrant.models):
        method, info = entrant.method if model.info is None else model.info.method, model.info
        contract = model.contract.model_dump(mode="json")
        values: dict[str, Any] = {"label": entrant.label, "method": method, "contract": contract}
        if info is not None:
            values |= {"training": entrant.training, "seed": info.config.get("seed")}
            values |= {name: getattr(info, name) for name in ("step", "seconds", "budget", "weights")}
        record = {**values, "then": record} if record else values
    return record


def machine(device: torch.device) -> str:
    """Processor (and accelerator), usable cores and torch's threads: ``AMD EPYC, 2 cores, 2 threads``."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    info = Path("/proc/cpuinfo")  # on Linux platform.processor() returns only the architecture
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    text = (
        f"{[*models, platform.processor() or platform.machine()][0]}, {cores} cores, {torch.get_num_threads()} threads"
    )
    return f"{torch.cuda.get_device_name(device)} on {text}" if device.type == "cuda" else text
