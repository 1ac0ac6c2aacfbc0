"""The small search behind the shipped students: train variants at one budget, bench them together.

    python benchmarks/quality/search.py benchmarks/quality/search.toml --out runs/search [--jobs 2] [--only NAME ...]

The TOML lists variants: ``[[variant]] name, method, set = ["KEY=VALUE", ...]``. ``budget`` is the number of network
evaluations a run may spend: a forward pass of one sample counts 1, a backward pass 2, whoever runs it (student,
teacher, guidance's second pass). Steps are set from it, measured on the method's first iterations. Each student is in
``OUT/<name>``; a variant already trained is not trained again. The bench goes to ``OUT/bench``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fewstep.config.base import read_toml

PROBE_STEPS = 2


def fewstep(*arguments: str, log: Path | None = None) -> None:
    """Run the command line; its output goes to ``log``."""
    command = [sys.executable, "-m", "fewstep", *arguments]
    if log is None:
        subprocess.run(command, check=True)
        return
    with log.open("w") as file:
        subprocess.run(command, check=True, stdout=file, stderr=subprocess.STDOUT)


def spent(run: Path) -> int:
    """Evaluations of a finished run, from its last row of metrics."""
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return sum(n["forward"] + 2 * n["tangent"] + 2 * n["backward"] for n in last["evaluations"].values())


def train(variant: dict[str, Any], shared: list[str], budget: int, out: Path) -> Path:
    """Train one variant on its budget."""
    run = out / variant["name"]
    if (run / "student" / "config.json").exists():
        return run
    settings = [*shared, *variant.get("set", [])]
    common = ("distill", "--method", variant["method"], "--backbone", "trellis")
    probe = out / ".probe" / variant["name"]
    if not (probe / "student").exists():
        fewstep(
            *common, "--out", str(probe), *settings, f"train.steps={PROBE_STEPS}", "train.warmup=0", log=_log(probe)
        )
    steps = max(1, round(budget * PROBE_STEPS / spent(probe)))
    fewstep(*common, "--out", str(run), *settings, f"train.steps={steps}", log=_log(run))
    return run


def _log(run: Path) -> Path:
    run.parent.mkdir(parents=True, exist_ok=True)
    return run.parent / f"{run.name}.log"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--only", nargs="*", help="names of the variants to run")
    parser.add_argument("--train-only", action="store_true", help="no bench at the end")
    parser.add_argument("--bench", nargs="*", default=["--steps", "1,2,4", "--seeds", "0,1"], help="bench arguments")
    chosen = parser.parse_args()
    plan = read_toml(chosen.variants)
    variants = [v for v in plan["variant"] if not chosen.only or v["name"] in chosen.only]
    chosen.out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(chosen.jobs) as pool:
        runs = list(
            pool.map(lambda v: train(v, plan.get("set", []), v.get("budget", plan["budget"]), chosen.out), variants)
        )
    if chosen.train_only:
        return
    students = [part for v, run in zip(variants, runs, strict=True) for part in ("--student", f"{v['name']}={run}")]
    fewstep("bench", "--backbone", "trellis", *students, "--out", str(chosen.out / "bench"), *chosen.bench)


if __name__ == "__main__":
    main()
