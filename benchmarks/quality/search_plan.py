"""The plan of a search over settings, and its trials."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from fewstep.config.base import Strict, merge
from fewstep.config.resolve import resolve_stages
from fewstep.errors import FewstepError


class Round(Strict):
    """A later round: the best settings of each method are run under further seeds."""

    keep: int = Field(ge=1, description="settings of each method")
    seeds: int = Field(ge=2, description="seeds of each")


class Plan(Strict):
    """What is searched."""

    backbone: str
    preset: str | None = None
    budget: int = Field(ge=1, description="evaluations of a run")
    trials: int | None = Field(None, ge=1, description="of each method, drawn at random; none: every combination")
    seed: int = Field(0, description="of the draw of settings")
    rounds: tuple[Round, ...] = ()
    set: dict[str, Any] = Field({}, description="keys of every run, nested")
    judge: dict[str, Any] = Field(
        {}, description="keys of fewstep bench: steps, seeds, limit, data; beside those of set"
    )
    measure: str | None = Field(None, description="of the suite, judged by; none: its headline")
    space: dict[str, dict[str, list[Any]]] = Field(description="by method: values by dotted key")


@dataclass(frozen=True)
class Trial:
    """One run: a method, its settings as JSON of dotted keys, and a seed."""

    method: str
    settings: str
    seed: int

    @property
    def id(self) -> str:
        return hashlib.sha256(f"{self.method}/{self.settings}/{self.seed}".encode()).hexdigest()[:12]

    def config(self, plan: Plan) -> dict[str, Any]:
        """Nested keys of the run."""
        tables = []
        for key, value in json.loads(self.settings).items():
            for part in reversed(key.split(".")):
                value = {part: value}
            tables.append(value)
        return merge({"train": {"threads": 1}}, plan.set, *tables, {"seed": self.seed})


def drawn(plan: Plan, method: str) -> list[Trial]:
    """The first round: distinct combinations of the method's values, under seed 0.

    Raises:
        FewstepError: for fewer combinations than trials, or a key or value that the method does not take.
    """
    space = plan.space[method]
    grid = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    if plan.trials is not None:
        if len(grid) < plan.trials:
            raise FewstepError(f"space.{method}: {len(grid)} combinations; accepted: at least trials = {plan.trials}")
        grid = random.Random(f"{plan.seed}/{method}").sample(grid, plan.trials)
    trials = [Trial(method, json.dumps(one, sort_keys=True), 0) for one in grid]
    for trial in trials:
        resolve_stages(method, plan.backbone, preset=plan.preset, layers=[trial.config(plan)])
    return trials


def repeated(trial: Trial, seeds: int) -> list[Trial]:
    """The same settings under seeds 0, 1, ..."""
    return [Trial(trial.method, trial.settings, seed) for seed in range(seeds)]
