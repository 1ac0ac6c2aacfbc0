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
import io
import itertools
import json
import multiprocessing
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

import fewstep
from benchmarks.quality.budget import evaluations, iterations
from benchmarks.quality.judge import judge_of
from benchmarks.quality.search_plan import Plan, Trial, drawn, repeated
from benchmarks.quality.search_tables import summary
from fewstep.benchmark.config import configure
from fewstep.config.base import merge, read_toml, validate
from fewstep.config.run import versions
from fewstep.console import spinner
from fewstep.engine.folder import locked
from fewstep.engine.progress import counting
from fewstep.errors import FewstepError
from fewstep.files import new_file
from fewstep.plugins.registry import registry


def carry_out(trial: Trial, plan_json: str, out: Path) -> dict[str, Any]:
    """Train and judge one trial, and return its row. An interrupted trial resumes from its checkpoint."""
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
    """A plan and the trials done so far."""

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
        """Read the trials done so far; record the plan and the undistilled network where they are missing."""
        plan, text = self.out / "plan.json", self.plan.model_dump_json(indent=2)
        if plan.exists() and plan.read_text() != text:
            raise FewstepError(f"--out {str(self.out)!r} holds a search by another plan; accepted: a folder of its own")
        judge = judge_of(self.plan.model_dump_json())
        self.lower = judge.measure in judge.stage.suite.lower_is_better
        if self.file.exists():
            whole = self.file.read_text().rpartition("\n")[0]  # a kill may have truncated the last row
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
        """The ranking score: the mean over seeds, smaller is better; infinity if any trial failed."""
        found = [self.rows[one.id].get(self.rank) or "inf" for one in repeated(trial, seeds)]
        return fmean(float(value) if self.lower or value == "inf" else -float(value) for value in found)

    def rounds(self) -> Iterator[list[Trial]]:
        """The trials of each round, interleaved over methods; a round depends on the results of the one before."""
        yield [trial for row in itertools.zip_longest(*self.trials.values()) for trial in row if trial]
        seeds = 1
        kept = self.trials
        for one in self.plan.rounds:
            ranked = {method: sorted(trials, key=partial(self.score, seeds=seeds)) for method, trials in kept.items()}
            seeds, kept = one.seeds, {method: trials[: one.keep] for method, trials in ranked.items()}
            yield [trial for trials in kept.values() for first in trials for trial in repeated(first, seeds)]

    def run(self, jobs: int, seconds: float) -> bool:
        """Run the trials that are left; returns whether all are done. After ``seconds`` no further trial is begun.

        Raises:
            FewstepError: if another process searches in the same folder, or it holds a search by another plan.
        """
        until, plan, console = time.monotonic() + seconds, self.plan.model_dump_json(), Console(soft_wrap=True)
        with locked(self.out), counting(console) as progress:
            with spinner(console, "judging the undistilled network"):
                self.begin()
            for trials in self.rounds():
                left = [trial for trial in trials if trial.id not in self.rows]
                before, total = len(trials) - len(left), len(trials)
                progress(before, total, "trials")
                for done, row in enumerate(_carried_out(left, plan, self.out, jobs, until), before + 1):
                    self.record(row)
                    value = row.get(self.rank, row.get("note"))
                    console.print(f"{row['method']:8} {value} {row['settings']}", markup=False, highlight=False)
                    progress(done, total, "trials")
                if any(trial.id not in self.rows for trial in trials):
                    return False
        return True


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
