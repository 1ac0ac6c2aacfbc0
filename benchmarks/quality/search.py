"""Search the settings of several methods at one training budget, with as many trials for each.

    python -m benchmarks.quality.search PLAN.toml --out runs/search [--jobs 2] [--seconds 600]

Each trial is one seed: a combination of values is drawn, trained on the plan's budget, and judged by the suite's
headline (or another measure) at the plan's numbers of steps; the first of them ranks. Rounds repeat the best of each
method with further seeds, so that the pick is not luck. A row a trial goes to ``OUT/trials.csv`` as it ends, tables to
``OUT/summary.md``. The same command goes on after any interruption.

The budget is the number of network evaluations of a run: a forward pass of one sample counts 1, a backward pass and a
forward pass with its derivative 2, whoever runs it. ``budget.py`` turns it into a number of iterations.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import itertools
import json
import multiprocessing
import platform
import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from pydantic import Field
from rich.console import Console

import fewstep
from benchmarks.quality.budget import evaluations, iterations
from benchmarks.quality.search_tables import summary
from fewstep.benchmark.config import configure
from fewstep.benchmark.entrants import Entrant, Stage, line_up
from fewstep.benchmark.sampling import sample
from fewstep.benchmark.students import load_students
from fewstep.config.base import Strict, merge, read_toml, validate
from fewstep.config.resolve import data_of, resolve_stages
from fewstep.config.run import versions
from fewstep.engine.device import pick_device
from fewstep.engine.teachers import open_teacher
from fewstep.errors import FewstepError
from fewstep.files import new_file
from fewstep.plugins.registry import registry


class Round(Strict):
    """The best settings of each method are repeated until each has so many seeds."""

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


class Judge:
    """Samples of a student against the teacher's and the truth. The teacher is sampled once a seed."""

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
        """The measure by steps, mean over seeds of noise: of a student, or of the undistilled network."""
        if folder is None:
            return {steps: self._value(entrant, steps) for entrant, steps in self.undistilled}
        (entrant,) = load_students({"": self.network}, (), [("trial", folder)])
        return {steps: self._value(entrant, steps) for steps in self.config.steps}


@lru_cache(maxsize=1)
def judge_of(plan: str) -> Judge:
    """One judge a process."""
    return Judge(Plan.model_validate_json(plan))


def carry_out(trial: Trial, plan_json: str, out: Path) -> dict[str, Any]:
    """Train and judge one trial: its row. A trial that was interrupted goes on from its checkpoint."""
    plan, folder, quiet = Plan.model_validate_json(plan_json), out / "runs" / trial.id, Console(file=io.StringIO())
    row: dict[str, Any] = {"id": trial.id, "method": trial.method, "seed": trial.seed, "settings": trial.settings}
    try:
        if (folder / "config.json").exists():
            run = fewstep.distill(out=folder, resume=True, console=quiet)
        else:
            config = trial.config(plan)
            distill = partial(fewstep.distill, trial.method, plan.backbone, preset=plan.preset, console=quiet)
            steps = iterations(plan.budget, distill, config, out / "runs" / f"{trial.id}-probe")
            run = distill(config=merge(config, {"train": {"steps": steps}}), out=folder)
        last = run.metrics()[-1]
        row |= {"iterations": last["step"], "evaluations": evaluations(run), "seconds": last["seconds"]}
        row |= {f"at_{steps}": value for steps, value in judge_of(plan_json).values(folder).items()}
    except FewstepError as error:  # a loss that is not finite is a result too
        row |= {"note": str(error).splitlines()[0]}
    shutil.rmtree(folder, ignore_errors=True)
    return row


class Search:
    """A plan with the trials that are done."""

    def __init__(self, plan: Plan, out: Path) -> None:
        self.plan, self.out, self.file = plan, out, out / "trials.csv"
        self.trials = {method: drawn(plan, method) for method in plan.space}
        steps = configure({"": registry().get("backbone", plan.backbone)}, None, None, plan.judge)[""].steps
        measured = [f"at_{n}" for n in steps]
        self.columns = ["id", "method", "seed", *measured, "iterations", "evaluations", "seconds", "note", "settings"]
        self.columns += ["machine", "versions"]
        self.rank, self.lower = measured[0], True
        self.rows: dict[str, dict[str, Any]] = {}

    def begin(self) -> None:
        """Read what is done, or record the plan and the undistilled network."""
        plan, text = self.out / "plan.json", self.plan.model_dump_json(indent=2)
        if plan.exists() and plan.read_text() != text:
            raise FewstepError(f"--out {str(self.out)!r} holds a search by another plan; accepted: a folder of its own")
        judge = judge_of(self.plan.model_dump_json())
        self.lower = judge.measure in judge.stage.suite.lower_is_better
        if self.file.exists():
            whole = self.file.read_text().rpartition("\n")[0]  # a kill may have cut the last row off
            self.rows = {row["id"]: row for row in csv.DictReader(whole.splitlines())}
        self.out.mkdir(parents=True, exist_ok=True)
        plan.write_text(text)
        with new_file(self.file) as temp, temp.open("w", newline="") as file:
            table = csv.DictWriter(file, self.columns)
            table.writeheader()
            table.writerows(self.rows.values())
        if "undistilled" not in self.rows:
            values = {f"at_{steps}": value for steps, value in judge.values().items()}
            self.record({"id": "undistilled", "method": "undistilled", "seed": 0, "settings": "{}", **values})

    def record(self, row: dict[str, Any]) -> None:
        row = row | {"machine": platform.machine(), "versions": json.dumps(versions())}
        self.rows[row["id"]] = row
        with self.file.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def score(self, trial: Trial, seeds: int) -> float:
        """The mean over seeds that ranks, smaller is better; infinity where one failed."""
        found = [self.rows[one.id].get(self.rank) or "inf" for one in repeated(trial, seeds)]
        return fmean(float(value) if self.lower or value == "inf" else -float(value) for value in found)

    def rounds(self) -> Iterator[list[Trial]]:
        """The trials of each round, methods in turn; a round is known once the one before it is done."""
        yield [trial for row in itertools.zip_longest(*self.trials.values()) for trial in row if trial]
        seeds = 1
        kept = self.trials
        for one in self.plan.rounds:
            ranked = {method: sorted(trials, key=partial(self.score, seeds=seeds)) for method, trials in kept.items()}
            seeds, kept = one.seeds, {method: trials[: one.keep] for method, trials in ranked.items()}
            yield [trial for trials in kept.values() for first in trials for trial in repeated(first, seeds)]

    def run(self, jobs: int, seconds: float) -> bool:
        """Whether all is done. After so many seconds no further trial is begun."""
        self.begin()
        until, plan = time.monotonic() + seconds, self.plan.model_dump_json()
        for trials in self.rounds():
            left = [trial for trial in trials if trial.id not in self.rows]
            for row in _carried_out(left, plan, self.out, jobs, until):
                self.record(row)
                print(
                    f"{len(self.rows) - 1:4} {row['method']:8} {row.get(self.rank, row.get('note'))} {row['settings']}"
                )
                sys.stdout.flush()
            if any(trial.id not in self.rows for trial in trials):
                return False
        return True


def repeated(trial: Trial, seeds: int) -> list[Trial]:
    """The same settings under seeds 0, 1, ..."""
    return [Trial(trial.method, trial.settings, seed) for seed in range(seeds)]


def _carried_out(trials: Sequence[Trial], plan: str, out: Path, jobs: int, until: float) -> Iterator[dict[str, Any]]:
    if jobs == 1:
        yield from (carry_out(trial, plan, out) for trial in trials if time.monotonic() < until)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(carry_out, trial, plan, out) for trial in trials]
        for future in as_completed(futures):
            if not future.cancelled():
                yield future.result()
            if time.monotonic() > until:
                for one in futures:
                    one.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time, one thread each")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no trial after so long")
    chosen = parser.parse_args()
    try:
        search = Search(validate(Plan, read_toml(chosen.plan)), chosen.out)
        done = search.run(chosen.jobs, chosen.seconds)
    except FewstepError as error:
        sys.exit(f"error: {error}")
    with new_file(chosen.out / "summary.md") as temp:
        temp.write_text(summary(list(search.rows.values()), search.plan.space, search.rank, search.lower))
    print("done" if done else "not done: the same command goes on", f"see {chosen.out / 'summary.md'}")


if __name__ == "__main__":
    main()
