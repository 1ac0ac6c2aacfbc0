"""The loop: for each seed the teacher, then undistilled, then the students, all from the same noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from fewstep.batch import Batch
from fewstep.bench.drawing import clock, draw, noise_of, warm_up
from fewstep.bench.entrants import OTHER_NOISE, TEACHER, TRUTH, Entrant
from fewstep.bench.rows import NON_FINITE, Row
from fewstep.suite import Suite

CONDITION_PROMPTS, CONDITION_REPEATS = 16, 3
Took = Callable[[Entrant, int, int, list[Row]], None]  # (entrant, steps, seed, its rows)


@dataclass
class Cells:
    """All measurements of one bench.

    ``shown`` keeps the objects of the first seed by (label, steps) for the contact sheet.
    """

    suite: Suite
    entrants: Sequence[Entrant]
    seeds: Sequence[int]
    limit: int | None
    device: torch.device
    shown: dict[tuple[str, int], Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.prompts: Batch = self.suite.prompts(self.limit)
        self._teacher: dict[int, Any] = {}

    def run(self, took: Took) -> Iterator[Row]:
        """Measure cell after cell, all networks on the device."""
        self.suite.to(self.device)
        for entrant in self.entrants:
            entrant.field.to(self.device)
        condition = self._condition()
        for entrant in self.entrants:
            warm_up(entrant, self.prompts, self.device)
        for seed in self.seeds:
            noise = noise_of(seed, self.prompts)
            for entrant in self.entrants:
                for steps in entrant.steps:
                    rows = self._cell(entrant, steps, seed, noise, condition)
                    took(entrant, steps, seed, rows)
                    yield from rows
        yield from self._floors()

    def _condition(self) -> float:
        """Seconds a sample of the condition encoder."""
        count = min(CONDITION_PROMPTS, self.prompts.layout.batch_size)
        times = []
        for _ in range(CONDITION_REPEATS):
            began = clock(self.device)
            self.suite.condition(count)
            times.append(clock(self.device) - began)
        return median(times) / count

    def _cell(self, entrant: Entrant, steps: int, seed: int, noise: Tensor, condition: float) -> list[Row]:
        drawn = draw(entrant, self.prompts, noise, steps, seed, self.device)
        began = clock(self.device)
        objects = self.suite.decode(drawn.x, self.prompts.layout)
        decode = (clock(self.device) - began) / self.prompts.layout.batch_size
        if entrant.label == TEACHER:
            self._teacher[seed], self._nfe = objects, drawn.nfe
        values = dict(self.suite.measure(objects, self._teacher[seed]))
        if seed == self.seeds[0]:
            self.shown[entrant.label, steps] = objects
        values.update(seconds_condition=condition, seconds_flow=drawn.seconds, seconds_decode=decode)
        if drawn.broken:
            values[NON_FINITE] = drawn.broken
        return [_row(entrant, steps, seed, drawn.nfe, name, value) for name, value in values.items()]

    def _floors(self) -> Iterator[Row]:
        """What no student can beat: the decoded truth, and (from 2 seeds on) the teacher against its other noise."""
        teacher, seeds = self.entrants[0], self.seeds
        truth = self.suite.decode(self.prompts.x0, self.prompts.layout)
        for name, value in self.suite.measure(truth, self._teacher[seeds[0]]).items():
            yield Row(TRUTH, TRUTH, 0, None, 0.0, 1.0, "", True, name, value)
        for one, other in zip(seeds, [*seeds[1:], seeds[0]], strict=True):
            if one == other or (len(seeds) == 2 and one == seeds[1]):
                continue  # a pair is taken once
            for name, value in self.suite.measure(self._teacher[one], self._teacher[other]).items():
                row = _row(teacher, teacher.steps[0], one, self._nfe, name, value)
                yield replace(row, label=OTHER_NOISE, method=OTHER_NOISE)


def _row(entrant: Entrant, steps: int, seed: int, nfe: float, metric: str, value: float) -> Row:
    how, made_for = entrant.contract, entrant.made_for(steps)
    return Row(entrant.label, entrant.method, steps, seed, nfe, how.guidance, how.sampler, made_for, metric, value)
