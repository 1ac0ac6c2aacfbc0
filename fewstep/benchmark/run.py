"""``run_bench``: measure cell after cell, summarise, write the report.

A cell is one entrant (teacher, undistilled network, or student) at one step count under one seed.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console

from fewstep.benchmark.config import BenchConfig
from fewstep.benchmark.entrants import OTHER_NOISE, RESERVED, TEACHER, TRUTH, Entrant, Stage, line_up
from fewstep.benchmark.progress import BenchProgress
from fewstep.benchmark.report import BenchTable, write
from fewstep.benchmark.rows import NON_FINITE, ROWS, Row, RowFile, read_rows
from fewstep.benchmark.sampling import check_alike, clock, sample_stages, warm_up
from fewstep.benchmark.summary import summarise
from fewstep.config.run import versions
from fewstep.core.batch import Batch
from fewstep.core.suite import Suite
from fewstep.engine.device import pick_device
from fewstep.engine.folder import occupied
from fewstep.errors import FewstepError

CONDITION_PROMPTS, CONDITION_REPEATS = 16, 3


def run_bench(
    name: str,
    stages: Sequence[Stage],
    config: BenchConfig,
    out: Path,
    *,
    compare: Path | None = None,
    console: Console | None = None,
) -> BenchTable:
    """Measure the students of ``stages`` by steps by seeds, with the teacher and its undistilled network.

    Writes ``rows.csv`` (row by row, so that a bench that is killed leaves what it measured), ``summary.csv``,
    ``table.md``, ``chart.png``, ``sheet.png``, ``environment.json`` and, with ``compare``, ``compare.csv``.

    Args:
        name: of what is measured, for the record.
        stages: each samples on what the one before it decoded; the objects of the last one are measured.
        out: must not exist, or be empty.
        compare: ``rows.csv`` of an earlier bench.
        console: shows the progress.

    Raises:
        FewstepError: for an ``out`` that is occupied, a label twice, stages with other students, or an unusable
            ``compare``.
    """
    entrants = line_up(stages, config.steps, config.teacher_steps)
    old = read_rows(compare) if compare is not None else None
    console, began = console or Console(), time.monotonic()
    cells = Cells(stages, entrants, config.seeds, config.limit, pick_device(config.device, "device"))
    same = {"backbone": name, "samples": cells.prompts.layout.batch_size, "machine": machine(cells.device)}
    _claim(out)
    packages = "; ".join(f"{package} {version}" for package, version in versions().items())
    with (
        RowFile(out, {**same, "versions": packages}) as file,
        BenchProgress(console, entrants, len(config.seeds), cells.suite.headline) as progress,
    ):
        for rows in cells.run():
            file.add(rows)
            progress.update(rows)
        file.add(cells.references())
    record = {
        **same,
        "versions": versions(),
        "seeds": list(config.seeds),
        "steps": list(config.steps),
        "teacher": _recorded(entrants[0]),
        "students": [_recorded(one) for one in entrants if one.label not in RESERVED],
        "seconds": round(time.monotonic() - began, 1),
        "command": sys.argv,
    }
    (out / "environment.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    columns = min(config.columns, cells.prompts.layout.batch_size)
    lines = summarise(file.rows, cells.suite.lower_is_better)
    return write(out, cells.suite, file.rows, lines, record, old, cells.shown, columns)


def _claim(out: Path) -> None:
    if occupied(out):
        raise FewstepError(f"--out: {str(out)!r} exists; accepted: a folder that does not, nothing is overwritten")
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ROWS).touch()
    except OSError as error:
        raise FewstepError(f"--out: got {str(out)!r}; accepted: a folder to write to ({error.strerror})") from None


def _recorded(entrant: Entrant) -> dict[str, Any]:
    """An entrant as JSON: its contract, what a student cost, and the same of the stages that follow."""
    values = {"label": entrant.label, "method": entrant.method, "contract": entrant.contract.model_dump(mode="json")}
    others = {name: getattr(entrant.info, name, None) for name in ("step", "seconds", "budget", "weights")}
    others["then"] = _recorded(entrant.then) if entrant.then is not None else None
    return {**values, **{name: value for name, value in others.items() if value is not None}}


@dataclass
class Cells:
    """All measurements of one bench.

    Prompts and conditions are those of the first stage; objects of the last stage are measured. ``shown`` keeps the
    objects of the first seed by (label, steps), for the contact sheet.
    """

    stages: Sequence[Stage]
    entrants: Sequence[Entrant]
    seeds: Sequence[int]
    limit: int | None
    device: torch.device
    shown: dict[tuple[str, int], Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._batches = [stage.suite.prompts(self.limit) for stage in self.stages]
        check_alike(self._batches)
        self._teacher: dict[int, Any] = {}  # the teacher's objects by seed

    @property
    def prompts(self) -> Batch:
        """The held-out batch that the first stage samples."""
        return self._batches[0]

    @property
    def suite(self) -> Suite:
        """The suite that measures, of the last stage."""
        return self.stages[-1].suite

    def run(self) -> Iterator[list[Row]]:
        """Measure cell after cell: for each seed the teacher first, then all others from the same noise."""
        for stage in self.stages:
            stage.suite.to(self.device)
        for entrant in self.entrants:
            for one, batch in zip(entrant.chain, self._batches, strict=True):
                one.field.to(self.device)
                warm_up(one, batch, self.device)
        condition = self._condition_seconds()
        for seed in self.seeds:
            for entrant in self.entrants:
                for steps in entrant.steps:
                    yield self._cell(entrant, steps, seed, condition)

    def _condition_seconds(self) -> float:
        """Seconds a sample of the condition encoder."""
        count = min(CONDITION_PROMPTS, self.prompts.layout.batch_size)
        times = []
        for _ in range(CONDITION_REPEATS):
            began = clock(self.device)
            self.stages[0].suite.condition(count)
            times.append(clock(self.device) - began)
        return median(times) / count

    def _cell(self, entrant: Entrant, steps: int, seed: int, condition: float) -> list[Row]:
        outcome = sample_stages(self.stages, entrant, self.prompts, steps, seed, self.device)
        if entrant.label == TEACHER:
            self._teacher[seed], self._nfe = outcome.objects, outcome.nfe
        values = dict(self.suite.measure(outcome.objects, self._teacher[seed]))
        if seed == self.seeds[0]:
            self.shown[entrant.label, steps] = outcome.objects
        values.update(seconds_condition=condition, **outcome.seconds)
        if outcome.broken:
            values[NON_FINITE] = outcome.broken
        return [_row(entrant, steps, seed, outcome.nfe, name, value) for name, value in values.items()]

    def references(self) -> Iterator[Row]:
        """After ``run``: the decoded truth and, from two seeds on, the teacher against itself from other noise."""
        teacher, seeds, true = self.entrants[0], self.seeds, self._batches[-1]
        truth = self.suite.decode(true.x0, true.layout)
        for name, value in self.suite.measure(truth, self._teacher[seeds[0]]).items():
            yield Row(TRUTH, TRUTH, 0, None, 0.0, 1.0, "", True, name, value)
        for one, other in zip(seeds, [*seeds[1:], seeds[0]], strict=True):
            if one == other or (len(seeds) == 2 and one == seeds[1]):
                continue  # each pair once
            for name, value in self.suite.measure(self._teacher[one], self._teacher[other]).items():
                row = _row(teacher, teacher.steps[0], one, self._nfe, name, value)
                yield replace(row, label=OTHER_NOISE, method=OTHER_NOISE)


def _row(entrant: Entrant, steps: int, seed: int, nfe: float, metric: str, value: float) -> Row:
    made_for = entrant.made_for(steps)
    return Row(
        entrant.label, entrant.method, steps, seed, nfe, entrant.guidance, entrant.samplers, made_for, metric, value
    )


def machine(device: torch.device) -> str:
    """Processor (and accelerator), cores usable here and torch's threads: ``AMD EPYC, 2 cores, 2 threads``."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""
    models = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    processor = models[0] if models else platform.processor() or platform.machine()
    text = f"{processor}, {cores} cores, {torch.get_num_threads()} threads"
    return f"{torch.cuda.get_device_name(device)} on {text}" if device.type == "cuda" else text
