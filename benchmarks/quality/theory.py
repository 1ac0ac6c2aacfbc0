"""Do students of an exact teacher err as theory says? Trains them, compares, and writes the table and the chart.

    python -m benchmarks.quality.theory --out runs/theory [--seconds 200]

The teacher is the exact velocity of smoothed digits (backbone ``images``); ``theory_exact`` has the predictions. A
student is a folder of OUT and is not trained again, so that the same command goes on where it was stopped;
``--seconds`` begins no student after so long. Once all are there, ``theory.md``, ``theory.csv`` and ``theory.png`` are
written to OUT. About four minutes of one core.
"""

from __future__ import annotations

import argparse
import csv
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from fewstep_images.config import ImagesConfig, ImagesDataConfig
from fewstep_images.dataset import SmoothedImages
from fewstep_images.network import ImageFlow
from fewstep_images.suite import ImageSuite
from torch import Tensor

import fewstep
from benchmarks.quality import theory_exact as exact
from benchmarks.quality.theory_score import SCORE_TIMES, Signals, signals
from fewstep.benchmark.chart import COLOURS, drawing
from fewstep.config.run import versions
from fewstep.core.batch import Batch

INTERVALS, SEEDS, PROMPTS = (0.2, 0.1, 0.05), (0, 1, 2), 1000
BACKBONE = {"smoothing": 0.4, "width": 128, "depth": 3, "pretrain": 600}
TRAIN = {"steps": 500, "batch_size": 128, "lr": 2e-3, "lr_schedule": "cosine", "threads": 1, "log_every": 100}
UNIFORM = {"kind": "uniform"}
VM = {"t": UNIFORM, "d_norm": "none"}
CM = {"t": UNIFORM, "loss": "l2", "weight": "velocity"}  # velocity matching's own gradient, but for the span t - D
VELOCITY, CONSISTENCY, CONTINUOUS, NORM = "velocity matching", "consistency", "continuous", "element norm"
KINDS = {
    VELOCITY: ("mdt-vm", VM),
    CONSISTENCY: ("cm", CM),
    CONTINUOUS: ("mdt-vm", {**VM, "kind": "continuous"}),
    NORM: ("mdt-vm", {**VM, "kind": "continuous", "d_norm": "element"}),
}

HEAD = f"""# Theory on exact ground truth

Made by `python -m benchmarks.quality.theory`; the derivations are in `theory_exact.py` beside it. The teacher is
the exact velocity of digits of 8 x 8 pixels with noise of {BACKBONE["smoothing"]}, conditional, without guidance.
Students: width {BACKBONE["width"]}, depth {BACKBONE["depth"]}, {TRAIN["steps"]} iterations of {TRAIN["batch_size"]}
samples, uniform t, no norm unless said, {len(SEEDS)} training seeds. {{machine}}; {{packages}}.

## Bias of the finite difference

Distances are root mean squares a pixel, of one-step samples of {PROMPTS} held-out noises to where the exact flow
carries the same noise. **predicted**: of the map that the method converges to. **first order**: its first-order
size, Euler's error with step D, plus D z for velocity matching. **slope**: the measured error projected on the
predicted one, 1 where theory holds. **paired**: the same once the error of the continuous student of the same seed,
the network's own, is taken off. ± is half the 95 % interval over training seeds.

| kind | D | first order | predicted | measured | slope | paired |
|---|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Trial:
    """A student: its kind, the interval of its finite difference (0: the exact derivative), its seed."""

    kind: str
    interval: float
    seed: int

    def train(self, out: Path) -> None:
        """Train it, or go on with it, unless it is there."""
        folder = self.folder(out)
        if (folder / "student").exists():
            return
        method, keys = KINDS[self.kind]
        tables: dict[str, Any] = {
            "objective": {**keys, **({"interval": self.interval} if self.interval else {})},
            "train": TRAIN,
            "seed": self.seed,
        }
        fewstep.distill(method, "images", config={"backbone": BACKBONE}, out=folder, resume=folder.exists(), **tables)

    def folder(self, out: Path) -> Path:
        return out / f"{self.kind.replace(' ', '-')}-{self.interval:g}-{self.seed}"


TRIALS = [
    *(Trial(kind, 0.0, seed) for kind in (CONTINUOUS,) for seed in SEEDS),
    *(Trial(kind, interval, seed) for seed in SEEDS for interval in INTERVALS for kind in (VELOCITY, CONSISTENCY)),
    Trial(NORM, 0.0, 0),
]


@dataclass(frozen=True)
class Line:
    """A row of the table; ``slope`` and ``paired`` are (mean, half the 95 % interval) over training seeds."""

    kind: str
    interval: float
    first_order: float
    predicted: float
    measured: float
    slope: tuple[float, float]
    paired: tuple[float, float]


class Ground:
    """The exact teacher, held-out noise, and where the exact flow carries it."""

    def __init__(self) -> None:
        config = ImagesConfig.model_validate(BACKBONE)
        self.data = SmoothedImages(ImagesDataConfig(prompts=PROMPTS), ImageFlow(config))
        self.suite = ImageSuite(self.data)
        self.batch = self.suite.prompts()
        self.noise, self.map = self.suite.noise(0, self.batch), self.suite.exact_map(0, PROMPTS)

    def error(self, trial: Trial, out: Path) -> Tensor:
        """[N, P] of a student's one step."""
        return one_step(student(trial, out), self.noise, self.batch) - self.map


def student(trial: Trial, out: Path) -> ImageFlow:
    """The trained network."""
    network = fewstep.load(trial.folder(out), device="cpu").network
    assert isinstance(network, ImageFlow)
    return network.eval()


@torch.no_grad()
def one_step(network: ImageFlow, noise: Tensor, batch: Batch) -> Tensor:
    """z - F(z, 1)."""
    average: Tensor = network(noise, torch.ones(len(noise)), batch.cond, batch.layout)
    return noise - average


def lines(ground: Ground, out: Path) -> Iterator[Line]:
    """Predicted and measured errors of each kind and interval."""
    floors = {seed: ground.error(Trial(CONTINUOUS, 0.0, seed), out) for seed in SEEDS}
    for interval in INTERVALS:
        euler, matched = (
            x - ground.map for x in exact.limits(ground.suite.exact, ground.noise, ground.batch, interval)
        )
        for kind, bias, first in (
            (VELOCITY, matched, euler + interval * ground.noise),
            (CONSISTENCY, euler, euler),
        ):
            errors = [ground.error(Trial(kind, interval, seed), out) for seed in SEEDS]
            paired = [error - floors[seed] for error, seed in zip(errors, SEEDS, strict=True)]
            yield Line(
                kind,
                interval,
                exact.rms(first),
                exact.rms(bias),
                fmean(exact.rms(error) for error in errors),
                spread([exact.slope(error, bias) for error in errors]),
                spread([exact.slope(error, bias) for error in paired]),
            )
    for kind, found in ((CONTINUOUS, list(floors.values())), (NORM, [ground.error(Trial(NORM, 0.0, 0), out)])):
        yield Line(kind, 0.0, 0.0, 0.0, fmean(map(exact.rms, found)), (math.nan, math.nan), (math.nan, math.nan))


def spread(values: list[float]) -> tuple[float, float]:
    """Mean, and half the 95 % interval by Student's t."""
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return fmean(values), half


def report(found: list[Line], scores: list[Signals]) -> str:
    """The tables in Markdown."""
    machine = f"{platform.machine()}, one thread"
    packages = "; ".join(f"{name} {version}" for name, version in versions().items())
    text = [HEAD.format(machine=machine, packages=packages)]
    for line in found:
        slopes = [f"{mean:.2f} ± {half:.2f}" if math.isfinite(mean) else "" for mean, half in (line.slope, line.paired)]
        sizes = f"{line.first_order:.4f} | {line.predicted:.4f} | {line.measured:.4f}"
        text.append(f"| {line.kind} | {line.interval:g} | {sizes} | {' | '.join(slopes)} |")
    text += ["", *Signals.table(scores)]
    return "\n".join(text) + "\n"


def draw(found: list[Line], scores: list[Signals], path: Path) -> None:
    """Left: predicted and measured bias by interval. Right: cosine of each signal with the true one, by time."""
    with drawing(path, 9.2, 3.6) as figure:
        left, right = figure.subplots(1, 2)
        for kind, colour in ((VELOCITY, COLOURS[0]), (CONSISTENCY, COLOURS[1])):
            own = [line for line in found if line.kind == kind]
            left.plot(
                [o.interval for o in own], [o.predicted for o in own], "-", color=colour, label=f"{kind}, predicted"
            )
            sizes = [o.predicted * o.paired[0] for o in own]
            halves = [o.predicted * o.paired[1] for o in own]
            left.errorbar(
                [o.interval for o in own], sizes, halves, fmt="o", color=colour, capsize=3, label=f"{kind}, measured"
            )
        left.set(xlabel="interval D of the finite difference", ylabel="bias of one step, rms a pixel", ylim=(0, None))
        left.legend(frameon=False, fontsize=8)
        for index, name in enumerate(dict.fromkeys(one.name for one in scores)):
            own_scores = [one for one in scores if one.name == name]
            right.plot(
                [o.t for o in own_scores], [o.cosine for o in own_scores], "o-", color=COLOURS[index], label=name
            )
        right.axhline(0, color="#999999", linewidth=0.8)
        right.set(xlabel="time t", ylabel="cosine with the true signal", ylim=(-0.35, 1.05), xticks=SCORE_TIMES)
        right.legend(frameon=False, fontsize=8)


def main() -> None:
    """Train what is lacking, then compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the students and of the result")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no student after so long")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    for number, trial in enumerate(TRIALS):
        if time.monotonic() - began > options.seconds:
            print(f"{number} of {len(TRIALS)} students are there; the same command goes on")
            return
        trial.train(options.out)
    ground = Ground()
    found = list(lines(ground, options.out))
    scores = signals(student(Trial(VELOCITY, 0.1, 0), options.out), ground.suite, ground.data, ground.noise)
    with (options.out / "theory.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["table", "name", "at", "measure", "value"])
        for line in found:
            values = {"first_order": line.first_order, "predicted": line.predicted, "measured": line.measured}
            values |= {"slope": line.slope[0], "slope_half": line.slope[1]}
            values |= {"paired": line.paired[0], "paired_half": line.paired[1]}
            rows.writerows(["bias", line.kind, line.interval, name, value] for name, value in values.items())
        for one in scores:
            rows.writerow(["score", one.name, one.t, "cosine", one.cosine])
            rows.writerow(["score", one.name, one.t, "size_ratio", one.ratio])
    (options.out / "theory.md").write_text(report(found, scores), encoding="utf-8")
    draw(found, scores, options.out / "theory.png")
    print((options.out / "theory.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
