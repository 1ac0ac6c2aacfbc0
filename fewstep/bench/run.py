"""``run_bench``: measure, then write everything that a reader of the numbers needs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fewstep.bench import report
from fewstep.bench.cells import Cells
from fewstep.bench.entrants import Entrant, Made, Stage, line_up, students_of
from fewstep.bench.environment import machine, versions
from fewstep.bench.progress import BenchProgress
from fewstep.bench.rows import ROWS, Row, RowFile, read_rows
from fewstep.bench.summary import Line, summarise
from fewstep.core.backbone import Backbone, Teacher
from fewstep.core.suite import Suite
from fewstep.engine.folder import occupied
from fewstep.errors import FewstepError, invalid

TEACHER_STEPS = 25


@dataclass(frozen=True)
class Report:
    """What a bench found: its folder, its measurements and their summary."""

    folder: Path
    rows: list[Row]
    lines: list[Line]


def run_bench(
    backbone: str,
    teacher: Teacher,
    suite: Suite,
    students: Sequence[tuple[str | None, Backbone, Made]],
    *,
    out: Path,
    steps: Sequence[int] = (1, 2, 4),
    seeds: Sequence[int] = (0, 1, 2),
    limit: int | None = None,
    compare: Path | None = None,
    console: Console | None = None,
    teacher_steps: int = TEACHER_STEPS,
    rescale_t: float = 1.0,
    device: torch.device | str = "cpu",
    columns: int = 8,
    command: Sequence[str] = (),
    stage: str = "",
    then: Sequence[Stage] = (),
) -> Report:
    """Measure students by steps by seeds, with the teacher and its undistilled network beside them.

    Writes ``rows.csv`` (as it goes), ``summary.csv``, ``table.md``, ``chart.png``, ``sheet.png``,
    ``environment.json`` and, with ``compare``, ``compare.csv`` into ``out``, and prints the tables.

    Args:
        backbone: its registered name, for the record.
        teacher: sampled by Euler at its own guidance, at ``teacher_steps`` and (undistilled) at ``steps``.
        students: (label, network, what is known of it); a label of None is the method's name.
        out: must not exist, or be empty.
        steps: step counts; one that a student's contract does not name is run and marked.
        seeds: of the noise, the same noise for all methods; intervals are over them.
        limit: only the first so many prompts.
        compare: ``rows.csv`` of an earlier bench.
        rescale_t: warp of the teacher's time grid.
        columns: objects on the contact sheet.
        command: the command line, for the record; ``sys.argv`` unless given.
        stage: name of the stage that ``teacher``, ``suite`` and ``students`` are of, where others follow.
        then: stages that follow, each on what the one before it decoded, in as many steps, with a student for each
            label. The last one's objects are measured.

    Raises:
        FewstepError: for an ``out`` that is occupied, unusable numbers, labels twice, or an unusable ``compare``.
    """
    _check_numbers(steps, seeds, limit, teacher_steps)
    stages = [Stage(stage, teacher, suite, students, rescale_t), *then]
    runners = line_up(stages, steps, teacher_steps)
    old = read_rows(compare) if compare is not None else None
    _claim(out)
    console, began = console or Console(), time.monotonic()
    cells = Cells(stages, runners, seeds, limit, torch.device(device))
    extra = {"backbone": backbone, "samples": cells.prompts.layout.batch_size, "machine": machine(cells.device)}
    rows = _measure(out, cells, extra, console)
    lines = summarise(rows, cells.suite.lower_is_better)
    record = {
        **extra,
        "versions": versions(),
        "seeds": list(seeds),
        "steps": list(steps),
        "teacher": _known(runners[0]),
        "students": [_known(one) for one in students_of(runners)],
        "seconds": round(time.monotonic() - began, 1),
        "command": list(command or sys.argv),
    }
    (out / "environment.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    report.write(out, cells, lines, record, columns)
    report.show(console, cells.suite, lines, record)
    if old is not None:
        report.compared(out, old, rows, extra, console)
    console.print(f"written: {out}", highlight=False, markup=False, soft_wrap=True)
    return Report(out, rows, lines)


def _measure(out: Path, cells: Cells, extra: dict[str, Any], console: Console) -> list[Row]:
    """Run all cells; their rows are on the disk as they are made."""
    packages = "; ".join(f"{name} {version}" for name, version in versions().items())
    file = RowFile(out, {**extra, "versions": packages})
    try:
        with BenchProgress(console, cells.entrants, len(cells.seeds), cells.suite.headline) as progress:
            file.add(cells.run(progress.took))
    finally:
        file.close()
    return file.rows


def _check_numbers(steps: Sequence[int], seeds: Sequence[int], limit: int | None, teacher_steps: int) -> None:
    for key, values, least in (("--steps", steps, 1), ("--seeds", seeds, 0)):
        if not values or min(values) < least or len(set(values)) < len(values):
            raise invalid(key, list(values), f"at least one integer from {least} on, each once")
    for key, value in (("--limit", limit), ("teacher_steps", teacher_steps)):
        if value is not None and value < (2 if key == "--limit" else 1):
            raise invalid(key, value, "2 or more" if key == "--limit" else "1 or more")


def _claim(out: Path) -> None:
    if occupied(out):
        raise FewstepError(f"--out: {str(out)!r} exists; accepted: a folder that does not, nothing is overwritten")
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ROWS).touch()
    except OSError as error:
        raise FewstepError(f"--out: got {str(out)!r}; accepted: a folder to write to ({error.strerror})") from None


def _known(entrant: Entrant) -> dict[str, Any]:
    """An entrant for the record: its contract, what a student was made with, and the same of later stages."""
    known = {"label": entrant.label, "method": entrant.method, "contract": entrant.contract.model_dump(mode="json")}
    others = {name: getattr(entrant.made, name, None) for name in ("step", "seconds", "budget", "weights")}
    others["then"] = _known(entrant.then) if entrant.then is not None else None
    return {**known, **{name: value for name, value in others.items() if value is not None}}
