"""One cell of a bench: sample all prompts through every stage, count evaluations, time it, and measure the objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from fewstep.benchmark.cells import Scorer
from fewstep.benchmark.entrants import OTHER_NOISE, TEACHER, TRUTH, Entrant, Stage
from fewstep.benchmark.rows import NON_FINITE, Row
from fewstep.benchmark.sampling import Tick, check_alike, clock, prompts_on, sample, warm_up
from fewstep.core.suite import Suite
from fewstep.errors import noted

CONDITION_PROMPTS, CONDITION_REPEATS = 16, 3


class Measurement:
    """All measurements of one bench.

    Conditions are those of the first stage; objects of the last stage are measured. ``shown`` keeps the objects of the
    first seed by (label, steps), for the contact sheet. Records go into the folder of ``scorer``.
    """

    def __init__(
        self, stages: Sequence[Stage], seeds: Sequence[int], limit: int | None, device: torch.device, scorer: Scorer
    ) -> None:
        self.stages, self.seeds, self.device, self.suite = stages, seeds, device, stages[-1].suite
        self.scorer, self.keeps_records = scorer, self.suite.keeps_records
        self.tick: Tick = lambda evaluations: None
        self.sampling = 0.0  # seconds of all sampling so far
        for stage in stages[:-1]:
            if type(stage.suite).following is Suite.following:
                stage.suite.following(None)  # raises, before anything is sampled
        for stage in stages:
            stage.suite.to(device)
        self.batches = [stage.suite.prompts(limit) for stage in stages]
        check_alike(self.batches)
        self.samples = self.batches[0].layout.batch_size
        self.shown: dict[tuple[str, int], Any] = {}
        self._teacher: dict[int, Any] = {}  # the teacher's objects by seed
        self._waiting: list[tuple[Row, dict[str, float]]] = []

    def prepare(self, entrants: Iterable[Entrant]) -> None:
        """Move the networks to the device, warm up every one, and time the condition encoder."""
        for entrant in entrants:
            for model, batch in zip(entrant.models, self.batches, strict=True):
                model.field.to(self.device)
                with noted(f"while trying {entrant.label} (method {entrant.method}) on two samples"):
                    warm_up(model, batch, self.device)
        self.condition = self._condition_seconds()

    def expected(self, entrant: Entrant, steps: int) -> float:
        """The approximate number of evaluations of a cell; with guidance each step counts twice."""
        return self.samples * steps * sum(2.0 if model.contract.guidance != 1.0 else 1.0 for model in entrant.models)

    def _condition_seconds(self) -> float:
        """Seconds per sample of the condition encoder."""
        count, times = min(CONDITION_PROMPTS, self.samples), []
        for _ in range(CONDITION_REPEATS):
            began = clock(self.device)
            self.stages[0].suite.condition(count)
            times.append(clock(self.device) - began)
        return median(times) / count

    def cell(self, entrant: Entrant, steps: int, seed: int, measured: bool = False) -> list[Row]:
        """Sample and decode stage after stage, each on what the one before it decoded, and measure the objects.

        Where records are kept, the teacher's cells of all seeds must come first, because distances to its samples from
        other noise need them. Their own rows are returned by ``teacher_rows``.

        Args:
            measured: the rows are known already; make only the objects, and return no rows.
        """
        nfe, broken, objects, layout = 0.0, 0.0, None, self.batches[0].layout
        times = {"seconds_condition": self.condition}
        for index, (stage, model, batch) in enumerate(zip(self.stages, entrant.models, self.batches, strict=True)):
            if index:
                layout = self.stages[index - 1].suite.following(objects)
                batch = prompts_on(layout, batch)
            suffix = f"_{stage.name}" if stage.name else ""
            x, evaluations, flow = sample(
                model, batch, stage.suite.noise(seed, batch), steps, seed, self.device, self.tick
            )
            times[f"seconds_flow{suffix}"], self.sampling = flow, self.sampling + flow * self.samples
            bad = ~x.isfinite()
            nfe, broken = nfe + evaluations, max(broken, float((layout.sum(bad.float()) > 0).float().mean()))
            x, began = x.masked_fill(bad, 0.0), clock(self.device)
            objects = stage.suite.decode(x, layout)
            times[f"seconds_decode{suffix}"] = (clock(self.device) - began) / self.samples
        row = Row(
            label=entrant.label,
            method=entrant.method,
            steps=steps,
            nfe=nfe,
            guidance=entrant.guidance,
            sampler=entrant.samplers,
            made_for=entrant.made_for(steps),
            metric="",
            value=0.0,
            evaluations=entrant.evaluations,
            training_seconds=entrant.training_seconds,
            training=entrant.training,
            seed=seed,
        )
        if entrant.label == TEACHER:
            self._teacher[seed], self._teacher_row = objects, row
        if seed == self.seeds[0] and not entrant.training:
            self.shown[entrant.label, steps] = objects
        rest = {**times, NON_FINITE: broken} if broken else times
        if entrant.label == TEACHER and self.keeps_records:
            self.scorer.cells.write(row.cell, self.suite.record(objects, objects))
            self._waiting += [] if measured else [(row, rest)]
            return []
        return [] if measured else _rows(row, {**self._measure(row, objects), **rest})

    def teacher_rows(self) -> list[Row]:
        """The rows of the teacher's cells since the last call, where records are kept."""
        waiting, self._waiting = self._waiting, []
        return [filled for row, rest in waiting for filled in _rows(row, {**self._scored(row), **rest})]

    def _measure(self, row: Row, objects: Any) -> dict[str, float]:
        """The suite's measures; if it has records, from a record that is written first."""
        teacher = self._teacher[self.scorer.against(row.cell)]
        if not self.keeps_records:
            return self.suite.measure(objects, teacher)
        self.scorer.cells.write(row.cell, self.suite.record(objects, teacher))
        return self._scored(row)

    def _scored(self, row: Row) -> dict[str, float]:
        return {name: float(value) for name, value in self.scorer(row.cell).items()}

    def references(self) -> list[Row]:
        """Rows of the decoded truth and, from two seeds on, of the teacher against itself from other noise."""
        true, row = self.batches[-1], self._teacher_row
        blank = replace(row, label=TRUTH, method=TRUTH, steps=0, nfe=0.0, guidance=1.0, sampler="", seed=None)
        rows = _rows(blank, self._measure(blank, self.suite.decode(true.x0, true.layout)))
        last = len(self.seeds) if len(self.seeds) > 2 else -1  # each pair of seeds once, and no seed with itself
        for seed in self.seeds[:last]:
            again = replace(row, label=OTHER_NOISE, method=OTHER_NOISE, seed=seed)
            rows += _rows(again, self._measure(again, self._teacher[seed]))
        return rows


def _rows(row: Row, values: Mapping[str, float]) -> list[Row]:
    """Copies of ``row`` for each measure."""
    return [replace(row, metric=name, value=value) for name, value in values.items()]
