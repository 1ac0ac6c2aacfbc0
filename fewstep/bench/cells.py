"""The loop: for each seed the teacher, then undistilled, then the students, all from the same noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch

from fewstep.bench.drawing import clock, warm_up
from fewstep.bench.entrants import OTHER_NOISE, TEACHER, TRUTH, Entrant, Stage
from fewstep.bench.rows import NON_FINITE, Row
from fewstep.bench.through import check_alike, through
from fewstep.core.batch import Batch
from fewstep.core.suite import Suite

CONDITION_PROMPTS, CONDITION_REPEATS = 16, 3
Took = Callable[[Entrant, int, int, list[Row]], None]  # (entrant, steps, seed, its rows)


@dataclass
class Cells:
    """All measurements of one bench.

    Objects of the last stage are measured; the prompts and their conditions are those of the first.
    ``shown`` keeps the objects of the first seed by (label, steps) for the contact sheet.
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
        self._teacher: dict[int, Any] = {}

    @property
    def prompts(self) -> Batch:
        """What is asked for."""
        return self._batches[0]

    @property
    def suite(self) -> Suite:
        """The one that measures."""
        return self.stages[-1].suite

    def run(self, took: Took) -> Iterator[Row]:
        """Measure cell after cell, all networks on the device."""
        for stage in self.stages:
            stage.suite.to(self.device)
        for entrant in self.entrants:
            for one, batch in zip(entrant.chain, self._batches, strict=True):
                one.field.to(self.device)
                warm_up(one, batch, self.device)
        condition = self._condition()
        for seed in self.seeds:
            for entrant in self.entrants:
                for steps in entrant.steps:
                    rows = self._cell(entrant, steps, seed, condition)
                    took(entrant, steps, seed, rows)
                    yield from rows
        yield from self._floors()

    def _condition(self) -> float:
        """Seconds a sample of the condition encoder."""
        count = min(CONDITION_PROMPTS, self.prompts.layout.batch_size)
        times = []
        for _ in range(CONDITION_REPEATS):
            began = clock(self.device)
            self.stages[0].suite.condition(count)
            times.append(clock(self.device) - began)
        return median(times) / count

    def _cell(self, entrant: Entrant, steps: int, seed: int, condition: float) -> list[Row]:
        made = through(self.stages, entrant, self.prompts, steps, seed, self.device)
        if entrant.label == TEACHER:
            self._teacher[seed], self._nfe = made.objects, made.nfe
        values = dict(self.suite.measure(made.objects, self._teacher[seed]))
        if seed == self.seeds[0]:
            self.shown[entrant.label, steps] = made.objects
        values.update(seconds_condition=condition, **made.seconds)
        if made.broken:
            values[NON_FINITE] = made.broken
        return [_row(entrant, steps, seed, made.nfe, name, value) for name, value in values.items()]

    def _floors(self) -> Iterator[Row]:
        """What no student can beat: the decoded truth, and (from 2 seeds on) the teacher against its other noise."""
        teacher, seeds = self.entrants[0], self.seeds
        true = self._batches[-1]
        truth = self.suite.decode(true.x0, true.layout)
        for name, value in self.suite.measure(truth, self._teacher[seeds[0]]).items():
            yield Row(TRUTH, TRUTH, 0, None, 0.0, 1.0, "", True, name, value)
        for one, other in zip(seeds, [*seeds[1:], seeds[0]], strict=True):
            if one == other or (len(seeds) == 2 and one == seeds[1]):
                continue  # a pair is taken once
            for name, value in self.suite.measure(self._teacher[one], self._teacher[other]).items():
                row = _row(teacher, teacher.steps[0], one, self._nfe, name, value)
                yield replace(row, label=OTHER_NOISE, method=OTHER_NOISE)


def _row(entrant: Entrant, steps: int, seed: int, nfe: float, metric: str, value: float) -> Row:
    made_for = entrant.made_for(steps)
    return Row(
        entrant.label, entrant.method, steps, seed, nfe, entrant.guidance, entrant.samplers, made_for, metric, value
    )
