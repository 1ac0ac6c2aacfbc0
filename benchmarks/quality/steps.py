"""What an iteration of each method costs, relative to plain fine-tuning: evaluations, memory, time.

    python -m benchmarks.quality.steps --backbone toy --out runs/steps-toy backbone.teacher=learned train.batch_size=512

Fine-tuning is flow matching on the same backbone with the same batch and optimiser. Every method makes short runs of
ITERATIONS with the keys of its preset, so that terms which start late or run every fifth iteration have their share.

* evaluations: of all networks, per sample and iteration, counted. A forward pass counts 1; a backward pass, and a
  forward pass with its tangent, count 2. Stored pairs of the teacher are generated beforehand and not counted here.
* memory: peak of a run. On a GPU ``torch.cuda.max_memory_allocated``; on a CPU the weights of all networks plus the
  peak of the run's allocations, by the memory events of torch's profiler. The frozen teacher is in memory for
  fine-tuning too.
* time: mean seconds per iteration without the first WARMUP. Method and fine-tuning alternate for ``--rounds`` rounds;
  the ratio is the median over rounds, so that a busy machine slows both.

Rerun the same command to continue where it stopped. ``--seconds 200`` begins no method after 200 seconds.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from fewstep.benchmark.run import machine
from fewstep.config.base import merge, parse_override
from fewstep.config.resolve import resolve_stages
from fewstep.config.run import Resolved, versions
from fewstep.console import Console, say
from fewstep.engine.budget import evaluations
from fewstep.engine.session import build
from fewstep.engine.trainer import Row, Trainer
from fewstep.errors import FewstepError, invalid
from fewstep.files import check_place, write_file, write_json
from fewstep.plugins.registry import registry

BASE = "flow-matching"
ITERATIONS, WARMUP = 20, 5
# Shortens what a short run would not get through: stored pairs, and the stages of progressive distillation.
SHORT: dict[str, Any] = {"pairs": {"count": 64, "batch_size": 64}, "iterations": ITERATIONS // 4}


@dataclass(frozen=True)
class Cost:
    """Costs per iteration of one method; counts are per sample, ``x_*`` are multiples of fine-tuning."""

    method: str
    forward: float
    tangent: float
    backward: float
    memory: int
    seconds: float
    x_evaluations: float
    x_memory: float
    x_time: float
    rounds: int
    load: float  # the machine's load average over a minute

    @property
    def evaluations(self) -> float:
        """All kinds together, in units of a forward pass."""
        return evaluations({"": {"forward": self.forward, "tangent": self.tangent, "backward": self.backward}})


def plan(method: str, backbone: str, keys: Mapping[str, Any]) -> Resolved:
    """The short run of a method.

    Raises:
        FewstepError: for unknown keys, or a method that does not fit the backbone.
    """
    objective = registry().get("objective", method)
    known = objective.load_config().model_fields
    short = {"objective": {key: value for key, value in SHORT.items() if key in known}}
    if objective.load().teaches and not registry().get("backbone", backbone).load().begins_with_teacher:
        network = {key: value for key, value in keys.get("backbone", {}).items() if key != "teacher"}
        keys = {**keys, "backbone": network}  # fine-tuning has no teacher
    train = {"steps": ITERATIONS, "warmup": 0, "ema": [], "export": "student", "checkpoint_every": ITERATIONS}
    return next(iter(resolve_stages(method, backbone, layers=[merge(short, keys, {"train": train})]).values()))


def prepared(resolved: Resolved) -> Trainer:
    """A trainer before its first iteration."""
    trainer = build(resolved, lambda line: None)
    trainer.prepare()
    return trainer


def timed(resolved: Resolved) -> tuple[float, dict[str, float]]:
    """Seconds per iteration, and evaluations by kind per sample and iteration."""
    trainer, ends = prepared(resolved), list[float]()
    before = totals(trainer.budget.counts)

    def log(row: Row) -> None:
        ends.append(trainer.seconds)

    trainer.train(log, lambda: None)
    samples = ITERATIONS * trainer.config.batch_size * trainer.config.accumulate
    counts = {kind: (count - before[kind]) / samples for kind, count in totals(trainer.budget.counts).items()}
    return (ends[-1] - ends[WARMUP - 1]) / (ITERATIONS - WARMUP), counts


def totals(counts: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Evaluations of all networks by kind."""
    return {kind: sum(by_kind[kind] for by_kind in counts.values()) for kind in ("forward", "tangent", "backward")}


def peak_memory(resolved: Resolved) -> int:
    """Bytes at the peak of a run."""
    trainer = prepared(resolved)
    run = partial(trainer.train, lambda row: None, lambda: None)
    if trainer.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(trainer.device)
        run()
        return torch.cuda.max_memory_allocated(trainer.device)
    weights = {tensor.data_ptr(): tensor.nbytes for tensor in trainer.nets.state().values()}
    weights |= {tensor.data_ptr(): tensor.nbytes for tensor in trainer.teacher.state_dict().values()}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        watched.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return sum(weights.values()) + peak_of(events)


def peak_of(events: Iterable[Mapping[str, Any]]) -> int:
    """The largest number of bytes allocated at once, from the memory events of a profile."""
    found = sorted((event["ts"], int(event["args"]["Bytes"])) for event in events if event.get("name") == "[memory]")
    peak = total = 0
    for _, size in found:
        total += size
        peak = max(peak, total)
    return peak


def cost(method: Resolved, base: Resolved, base_memory: int, rounds: int) -> Cost:
    """Measure a method against fine-tuning."""
    memory, own, plain = peak_memory(method), [], []
    for _ in range(rounds):
        plain.append(timed(base))
        own.append(timed(method))
    (_, counts), (_, base_counts) = own[0], plain[0]
    ratio = median(a / b for (a, _), (b, _) in zip(own, plain, strict=True))
    return Cost(
        method.method.name,
        **counts,
        memory=memory,
        seconds=median(seconds for seconds, _ in own),
        x_evaluations=evaluations({"": counts}) / evaluations({"": base_counts}),
        x_memory=memory / base_memory,
        x_time=ratio,
        rounds=rounds,
        load=os.getloadavg()[0],
    )


def read(path: Path) -> list[Cost]:
    """The rows of an earlier call."""
    kinds = {field.name: {"str": str, "int": int}.get(str(field.type), float) for field in fields(Cost)}
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [Cost(**{name: kinds[name](text) for name, text in row.items()}) for row in csv.DictReader(file)]


def table(costs: Iterable[Cost]) -> str:
    """The costs as Markdown, the cheapest first."""
    lines = ["| method | evaluations | x evaluations | MiB | x memory | ms | x time |", "|---|" + "---|" * 6]
    for one in sorted(costs, key=lambda cost: (cost.evaluations, cost.method)):
        counted = f"{one.evaluations:.2f} | {one.x_evaluations:.2f} | {one.memory / 2**20:.2f} | {one.x_memory:.2f}"
        lines.append(f"| {one.method} | {counted} | {1e3 * one.seconds:.1f} | {one.x_time:.2f} |")
    return "\n".join(lines) + "\n"


def write(out: Path, costs: Iterable[Cost]) -> None:
    """``steps.csv`` and ``table.md``."""
    costs = list(costs)
    with (out / "steps.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Cost)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(one) for one in costs)
    write_file(out / "table.md", table(costs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--methods", help="a,b; by default all that are registered and fit the backbone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("keys", nargs="*", metavar="KEY=VALUE")
    chosen, began, console = parser.parse_intermixed_args(), time.monotonic(), Console()
    check_place("--out", chosen.out)
    known = [entry.name for entry in registry().entries("objective")]
    methods = (
        [registry().get("objective", name).name for name in chosen.methods.split(",")] if chosen.methods else known
    )
    keys = merge(*map(parse_override, chosen.keys))
    base = plan(BASE, chosen.backbone, keys)
    alike = ("batch_size", "accumulate", "precision", "device", "threads")  # override every method's preset
    keys = merge({"train": {name: base.tables()["train"][name] for name in alike}}, keys)
    tables = {name: value for name, value in merge(base.tables(), keys).items() if name != "objective"}
    facts = {"backbone": chosen.backbone, "config": tables, "machine": machine(torch.device("cpu"))}
    record, costs = chosen.out / "environment.json", read(chosen.out / "steps.csv")
    if costs and json.loads(record.read_text())["config"] != tables:
        raise invalid("--out", str(chosen.out), "a new folder, or that of the same keys")
    chosen.out.mkdir(parents=True, exist_ok=True)
    write_json(record, {**facts, "versions": versions(), "iterations": ITERATIONS})
    base_memory = peak_memory(base)
    for method in methods:
        if method in {one.method for one in costs}:
            continue
        if time.monotonic() - began > chosen.seconds:
            say(console, f"stopped before {method}; the same command goes on")
            break
        try:
            resolved = plan(method, chosen.backbone, keys)
        except FewstepError as error:
            if chosen.methods:
                raise
            say(console, f"left out: {error}")
            continue
        costs.append(cost(resolved, base, base_memory, chosen.rounds))
        say(console, f"{method}: {costs[-1].x_time:.2f} times the time of {BASE}")
        write(chosen.out, costs)
    console.print(table(costs))


if __name__ == "__main__":
    try:
        main()
    except FewstepError as error:
        raise SystemExit(f"error: {error}") from None
