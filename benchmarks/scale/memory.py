"""Peak resident memory of short runs on a CPU beside what ``fewstep distill --dry-run --memory auto`` expects, in MB.

``python benchmarks/scale/memory.py`` prints a table. The resident memory of the same run with a network of no size is
subtracted: Python, torch and the data. A run is a process of its own; its peak is the kernel's high-water mark (VmHWM).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

TOY = ["-b", "toy", "train.batch_size=1024", "backbone.teacher=learned", "backbone.pretrain=0", "backbone.depth=6"]
NANO = ["-b", "trellis", "train.batch_size=8"]
WIDE = "backbone.width=1536"
CASES = {
    "MLP of 9.5 M parameters": [*TOY, WIDE],
    "the same, with an EMA": [*TOY, WIDE, "train.ema=[0.9]"],
    "the same, lora.rank=8": [*TOY, WIDE, "lora.rank=8"],
    "the same, 4 micro-batches of a quarter": [*TOY, WIDE, "train.batch_size=256", "train.accumulate=4"],
    "nano structure flow": NANO,
    "the same, backbone.recompute=blocks": [*NANO, "backbone.recompute=blocks"],
}
NOTHING = {"toy": [*TOY, "backbone.width=2", "train.batch_size=2"], "trellis": [*NANO, "train.batch_size=1"]}
RUN = """
import sys
from fewstep.cli import main
assert main(sys.argv[1:]) == 0
line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print("peak", line.split()[1])
"""


def command(words: list[str]) -> list[str]:
    return ["distill", "-m", "mdt-vd", *words, "train.steps=2", "train.device=cpu", "train.threads=1"]


def peak(words: list[str]) -> float:
    """The peak resident memory of a run, in MB."""
    with tempfile.TemporaryDirectory() as folder:
        run = [sys.executable, "-c", RUN, *command(words), "--out", f"{folder}/run"]
        out = subprocess.run(run, check=True, capture_output=True, text=True).stdout
    return int(out.split()[-1]) * 1024 / 1e6


def foreseen(words: list[str]) -> float:
    """What the dry run says, in MB."""
    from fewstep.config.recorded import Words
    from fewstep.config.resolve import resolve_run
    from fewstep.engine.memory import expected

    keys = [word for word in command(words) if "=" in word]
    (resolved,) = resolve_run(Words("mdt-vd", words[1], None, None, None), keys).values()
    return expected(resolved).total / 1e6


def main(names: list[str]) -> None:
    print("| run | expected | measured |\n|---|---|---|")
    base: dict[str, float] = {}
    for name, words in CASES.items():
        if names and not any(one in name for one in names):
            continue
        backbone = words[1]
        if backbone not in base:
            base[backbone] = peak(NOTHING[backbone]) - foreseen(NOTHING[backbone])
        print(f"| {name} | {foreseen(words):.0f} | {peak(words) - base[backbone]:.0f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
