"""``run_bench``: measure cell after cell, summarise, write the report.

A cell is one entrant (teacher, undistilled network, or student) at one step count under one seed.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console

from fewstep.benchmark.config import BenchConfig
from fewstep.benchmark.entrants import OTHER_NOISE, TEACHER, TRUTH, Entrant, Stage, line_up
from fewstep.benchmark.report import BenchTable, write
from fewstep.benchmark.rows import EXTRA, FLOW, NON_FINITE, ROWS, Row, csv_file, read_rows
from fewstep.benchmark.sampling import check_alike, clock, sample_stages, warm_up
from fewstep.benchmark.summary import seconds, summarise
from fewstep.config.run import versions
from fewstep.engine.device import pick_device
from fewstep.engine.folder import occupied
from fewstep.engine.progress import counting
from fewstep.errors import FewstepError

CONDITION_PROMPTS, CONDITION_REPEATS = 16, 3


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
    measurement = Measurement(stages, cells, config, pick_device(config.device, "device"))
    samples, suite = measurement.prompts.layout.batch_size, stages[-1].suite
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

            for number, found in enumerate(measurement.run(), 1):
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
    lines = summarise(rows, suite.lower_is_better)
    return write(out, suite, rows, lines, record, old, measurement.shown, min(config.columns, samples))


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


class Measurement:
    """All measurements of one bench.

    Prompts and conditions are those of the first stage; objects of the last stage are measured. ``shown`` keeps the
    objects of the first seed by (label, steps), for the contact sheet.
    """

    def __init__(
        self, stages: Sequence[Stage], cells: Sequence[tuple[Entrant, int]], config: BenchConfig, device: torch.device
    ) -> None:
        self.stages, self.cells, self.seeds, self.device = stages, cells, config.seeds, device
        self.batches = [stage.suite.prompts(config.limit) for stage in stages]
        check_alike(self.batches)
        self.prompts, self.suite = self.batches[0], stages[-1].suite
        self.shown: dict[tuple[str, int], Any] = {}
        self._teacher: dict[int, Any] = {}  # the teacher's objects by seed

    def run(self) -> Iterator[list[Row]]:
        """The rows of cell after cell: for each seed the teacher first, then all others from the same noise."""
        for stage in self.stages:
            stage.suite.to(self.device)
        for entrant in dict.fromkeys(entrant for entrant, _ in self.cells):
            for model, batch in zip(entrant.models, self.batches, strict=True):
                model.field.to(self.device)
                warm_up(model, batch, self.device)
        condition = self._condition_seconds()
        for seed in self.seeds:
            for entrant, steps in self.cells:
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
            self._teacher[seed] = outcome.objects
        if seed == self.seeds[0]:
            self.shown[entrant.label, steps] = outcome.objects
        values = dict(self.suite.measure(outcome.objects, self._teacher[seed]))
        values.update(seconds_condition=condition, **outcome.seconds)
        if outcome.broken:
            values[NON_FINITE] = outcome.broken
        rows = [
            Row(
                label=entrant.label,
                method=entrant.method,
                steps=steps,
                nfe=outcome.nfe,
                guidance=entrant.guidance,
                sampler=entrant.samplers,
                made_for=entrant.made_for(steps),
                metric=metric,
                value=value,
                seed=seed,
            )
            for metric, value in values.items()
        ]
        if entrant.label == TEACHER:
            self._teacher_row = rows[0]
        return rows

    def references(self) -> list[Row]:
        """After ``run``: the decoded truth and, from two seeds on, the teacher against itself from other noise."""
        true, row = self.batches[-1], self._teacher_row
        truth = self.suite.measure(self.suite.decode(true.x0, true.layout), self._teacher[self.seeds[0]])
        blank = replace(row, label=TRUTH, method=TRUTH, steps=0, nfe=0.0, guidance=1.0, sampler="", seed=None)
        rows = _rows(blank, truth)
        pairs = list(zip(self.seeds, [*self.seeds[1:], self.seeds[0]], strict=True))
        for seed, other in pairs if len(pairs) > 2 else pairs[:-1]:  # each pair once, none of a seed with itself
            found = self.suite.measure(self._teacher[seed], self._teacher[other])
            rows += _rows(replace(row, label=OTHER_NOISE, method=OTHER_NOISE, seed=seed), found)
        return rows


def _rows(row: Row, values: Mapping[str, float]) -> list[Row]:
    """A row for each measure."""
    return [replace(row, metric=name, value=value) for name, value in values.items()]


def machine(device: torch.device) -> str:
    """Processor (and accelerator), cores usable here and torch's threads: ``AMD EPYC, 2 cores, 2 threads``."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""
    models = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    processor = models[0] if models else platform.processor() or platform.machine()
    text = f"{processor}, {cores} cores, {torch.get_num_threads()} threads"
    return f"{torch.cuda.get_device_name(device)} on {text}" if device.type == "cuda" else text
