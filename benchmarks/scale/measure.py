"""Peak resident memory and throughput of short runs on a CPU, against what ``--dry-run --memory`` expects.

    python -m benchmarks.scale.measure memory            # one process: plain, LoRA, recompute, micro-batches, ...
    python -m benchmarks.scale.measure ranks             # 1, 2 and 4 processes, ddp and fsdp
    python -m benchmarks.scale.measure memory lora.rank=8

Each run is a separate process (``once.py``) that distils a TRELLIS structure flow with random weights, on the shipped
objects. Memory is the peak of the training loop above the floor, the peak of one process with a tiny network: Python,
torch and the data. ``results/measured.json`` collects the runs, ``results/measured.md`` has them as tables.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
LARGE, NONE = {"model_channels": 512, "num_blocks": 6}, {"model_channels": 64, "num_blocks": 1}
PLAIN = ["train.batch_size=4"]
MEMORY = {
    "plain": PLAIN,
    "plain, MALLOC_MMAP_THRESHOLD_=65536": PLAIN,
    "lora.rank=8": [*PLAIN, "lora.rank=8"],
    "backbone.recompute=blocks": [*PLAIN, "backbone.recompute=blocks"],
    "4 micro-batches of a quarter": ["train.batch_size=1", "train.accumulate=4"],
    "train.optimizer=adamw8bit": [*PLAIN, "train.optimizer=adamw8bit"],
}
FOUR = ["train.batch_size=1", "train.accumulate=4"]  # an iteration is the same in all cases
SMALL = "MALLOC_MMAP_THRESHOLD_=65536"  # makes malloc return freed memory, such as networks before sharding
RANKS = {
    f"{ranks} {kind}{end}": (ranks, [*FOUR, f"parallel.kind={kind}", "parallel.timeout=300"])
    for end in ("", f", {SMALL}")
    for ranks, kind in ((1, "none"), (2, "ddp"), (4, "ddp"), (2, "fsdp"), (4, "fsdp"))
}


def saved_flow(folder: Path, size: dict[str, int]) -> int:
    """Write a structure flow with random weights that fits the shipped data; returns its number of parameters."""
    from fewstep_shapes3d.data.prepared import PreparedSet
    from fewstep_trellis.backbone import StructureFlow
    from fewstep_trellis.models import SparseStructureFlowModel

    model = SparseStructureFlowModel(
        resolution=8, in_channels=8, out_channels=8, cond_channels=PreparedSet.load().channels, patch_size=2,
        num_head_channels=64, share_mod=True, qk_rms_norm=True, **size,
    )  # fmt: skip
    StructureFlow(model).save(folder)
    return sum(p.numel() for p in model.parameters())


def run(teacher: Path, keys: list[str], steps: int, ranks: int = 1, malloc: bool = False) -> tuple[list[float], float]:
    """The peak of each process in MB, and the seconds per iteration without the first."""
    words = ["distill", "-m", "mdt-vd", "-b", "trellis", f"backbone.teacher={teacher}", f"train.steps={steps}", *keys]
    words += ["train.device=cpu", "train.threads=1", "train.checkpoint_every=1", "train.log_every=1"]
    start = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"] if ranks > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", *start, "benchmarks.scale.once", folder, *words, "-o", f"{folder}/run"]
        change = {"MALLOC_MMAP_THRESHOLD_": "65536"} if malloc else {}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **change})
        peaks = [int((Path(folder) / str(rank)).read_text()) * 1024 / 1e6 for rank in range(ranks)]
        lines = (Path(folder) / "run/metrics.jsonl").read_text().splitlines()
    first, last = (json.loads(lines[i])["seconds"] for i in (0, -1))
    return peaks, (last - first) / (steps - 1)


def foreseen(teacher: Path, keys: list[str]) -> dict[str, float]:
    """What the dry run expects, by part, in MB."""
    from fewstep.config.recorded import Words
    from fewstep.config.resolve import resolve_run
    from fewstep.engine.memory import expected

    given = [f"backbone.teacher={teacher}", "train.device=cpu", *keys]
    (resolved,) = resolve_run(Words("mdt-vd", "trellis", None, None, None), given).values()
    found = expected(resolved)
    parts = {**found.parts, **found.passes, "copy for a checkpoint": found.copies, "total": found.total}
    return {name: round(size / 1e6, 1) for name, size in parts.items()}


def floor(none: Path) -> float:
    """The peak of a run with a tiny network, less what the dry run expects for it, in MB."""
    return run(none, PLAIN, 2)[0][0] - foreseen(none, PLAIN)["total"]


def memory(large: Path, name: str, least: float) -> dict[str, Any]:
    peaks, _ = run(large, MEMORY[name], 2, malloc="MALLOC" in name)
    return {"expected": foreseen(large, MEMORY[name]), "measured": round(peaks[0] - least)}


def ranks(large: Path, name: str, least: float) -> dict[str, Any]:
    count, keys = RANKS[name]
    peaks, seconds = run(large, keys, 3, count, malloc=SMALL in name)
    return {"measured": [round(peak - least) for peak in peaks], "samples a second": round(4 / seconds, 3)}


@contextmanager
def teachers() -> Iterator[tuple[Path, Path, int]]:
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / name for name in ("large", "none")]
        for place in places:
            place.mkdir()
        count, _ = saved_flow(places[0], LARGE), saved_flow(places[1], NONE)
        yield places[0] / "model", places[1] / "model", count


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(": ")[2] for line in info if line.startswith("model name")), platform.machine())
    return {
        "cpu": f"{cpu}, {os.cpu_count()} cores", "torch": torch.__version__, "python": platform.python_version(),
        "date": str(date.today()), "load before": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    lines = ["| one process | expected, MB | measured, MB |", "|---|---|---|"]
    lines += [f"| {name} | {r['expected']['total']:.0f} | {r['measured']} |" for name, r in found["memory"].items()]
    lines += ["", "| processes | peak of each, MB | samples a second | a process |", "|---|---|---|---|"]
    for name, r in found["ranks"].items():
        speed, peaks = r["samples a second"], ", ".join(map(str, r["measured"]))
        lines.append(f"| {name} | {peaks} | {speed:.2f} | {speed / len(r['measured']):.2f} |")
    if plain := found["memory"].get("plain"):
        parts = [f"{name} {size:.0f}" for name, size in plain["expected"].items() if size and name != "total"]
        lines += ["", f"The expected parts of the plain run, in MB: {', '.join(parts)}."]
    machines = [row["machine"] for kind in ("memory", "ranks") for row in found[kind].values()]
    loads = [one.pop("load before") for one in machines]
    told = dict.fromkeys("; ".join(f"{key} {value}" for key, value in one.items()) for one in machines)
    lines += ["", *told, f"load average before the runs {min(loads)} to {max(loads)}; of a free machine it is 0"]
    return "\n".join([*lines, ""])


def main(kind: str, names: list[str]) -> None:
    file, cases = RESULTS / "measured.json", {"memory": MEMORY, "ranks": RANKS}[kind]
    RESULTS.mkdir(exist_ok=True)
    found = json.loads(file.read_text()) if file.exists() else {"floor": None, "memory": {}, "ranks": {}}
    with teachers() as (large, none, count):
        found["floor"] = found["floor"] or round(floor(none))
        for name in names or cases:
            about = {"parameters": count, **machine()}
            row = {"memory": memory, "ranks": ranks}[kind](large, name, found["floor"])
            found[kind][name] = {**row, "machine": about}
            print(name, found[kind][name], flush=True)
            file.write_text(json.dumps(found, indent=1) + "\n")
            (RESULTS / "measured.md").write_text(table(json.loads(file.read_text())))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
