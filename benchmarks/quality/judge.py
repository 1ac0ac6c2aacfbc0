"""Scores a student by one measure of the backbone's suite, on held-out draws that no report uses."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.quality.search_plan import Plan
from fewstep.benchmark.config import configure
from fewstep.benchmark.entrants import Entrant, Stage, line_up
from fewstep.benchmark.sampling import sample
from fewstep.benchmark.students import load_students
from fewstep.config.base import merge
from fewstep.config.resolve import data_of
from fewstep.engine.device import pick_device
from fewstep.engine.teachers import open_teacher
from fewstep.plugins.registry import registry


class Judge:
    """Measures a student's samples against the teacher's and the truth. The teacher is sampled once per seed."""

    def __init__(self, plan: Plan) -> None:
        network = registry().get("backbone", plan.backbone)
        shared = {key: plan.set[key] for key in ("backbone", "data") if key in plan.set}
        self.config = configure({"": network}, None, None, merge(shared, plan.judge))[""]
        torch.set_num_threads(self.config.threads or 1)
        backbone = network.load()
        teacher = open_teacher(network, self.config.backbone)
        data = data_of(network).load()(self.config.data, teacher.backbone)
        suite = backbone.suite(self.config.backbone, data)
        self.network, self.stage = network, Stage("", teacher, suite)
        self.device = pick_device(self.config.device)
        suite.to(self.device)
        self.batch = suite.prompts(self.config.limit)
        first, *self.undistilled = line_up([self.stage], [], self.config.steps, self.config.teacher_steps)
        self.measure = plan.measure or suite.headline
        self.truth = {seed: self._objects(*first, seed) for seed in self.config.seeds}

    def _objects(self, entrant: Entrant, steps: int, seed: int) -> Any:
        noise, (model,) = self.stage.suite.noise(seed, self.batch), entrant.models
        model.field.to(self.device)
        x = sample(model, self.batch, noise, steps, seed, self.device)[0]
        return self.stage.suite.decode(x.nan_to_num(0.0, 0.0, 0.0), self.batch.layout)

    def _value(self, entrant: Entrant, steps: int) -> float:
        suite = self.stage.suite
        found = [
            suite.measure(self._objects(entrant, steps, seed), self.truth[seed])[self.measure]
            for seed in self.config.seeds
        ]
        return fmean(found)

    def values(self, folder: Path | None = None) -> dict[int, float]:
        """The measure by number of steps, averaged over noise seeds, of a student or the undistilled network (None)."""
        if folder is None:
            return {steps: self._value(entrant, steps) for entrant, steps in self.undistilled}
        (entrant,) = load_students({"": self.network}, (), [("trial", folder)])
        return {steps: self._value(entrant, steps) for steps in self.config.steps}


@lru_cache(maxsize=1)
def judge_of(plan: str) -> Judge:
    """One judge per process."""
    return Judge(Plan.model_validate_json(plan))
