"""Do students of an exact teacher err as theory predicts? Makes the tables and the chart of ``results/theory.md``.

    python -m benchmarks.quality.theory --out runs/theory

``theory_exact`` has the predictions, ``theory_students`` the students that are solved rather than trained,
``theory_score`` the signal of velocity distillation. The one network that is trained is kept in OUT; its training
resumes where it stopped. Takes about a minute and a half on one core.
"""

from __future__ import annotations

import argparse
import csv
import math
import platform
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import torch
from fewstep_images.config import ImagesConfig, ImagesDataConfig
from fewstep_images.dataset import SmoothedImages
from fewstep_images.network import ImageFlow
from fewstep_images.sources import smoothed
from fewstep_images.suite import ImageSuite
from scipy.stats import t as student_t
from torch import Tensor

import fewstep
from benchmarks.quality import theory_exact as exact
from benchmarks.quality import theory_score
from benchmarks.quality.theory_students import SAMPLES, WAVES, LinearStudent, Method, MixtureFlow
from fewstep.benchmark.chart import COLOURS, drawing
from fewstep.config.run import versions
from fewstep.core.batch import Condition
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense
from fewstep.core.mixture import Mixture
from fewstep.core.objective import Step
from fewstep.core.samplers import heun
from fewstep.core.times import step_grid
from fewstep.files import new_file

INTERVALS, SEEDS, NOISES = (0.2, 0.1, 0.05), range(5), 500
COMPONENTS, EVERY, SMOOTHING = 2, 9, 0.6  # principal components; every 9th digit; standard deviation of the noise
KINDS: dict[Method, str] = {
    "vm": "velocity matching, t from D on",
    "vm-clamped": "velocity matching, min(D, t)",
    "cm": "consistency",
}
BACKBONE = {"smoothing": 0.4, "width": 128, "depth": 3}
NETWORK = {
    "objective": {"t": {"kind": "uniform"}, "d_norm": "none", "interval": 0.1},
    "train": {"steps": 400, "batch_size": 128, "lr": 2e-3, "lr_schedule": "cosine", "threads": 1},
}
HEAD = f"""# Theory on exact ground truth

Made by `python -m benchmarks.quality.theory` ({{machine}}, one thread; {{packages}}).

## Bias of the finite difference

Data: every {EVERY}th digit on its {COMPONENTS} leading principal components, with noise of {SMOOTHING}; the teacher
is exact. Students are linear in {WAVES} random waves of x and t, and each method's loss is solved on {SAMPLES} samples
rather than trained (`theory_students.py`): what is left is the method's own error and that of the features. Numbers
are root mean squares an element, over {NOISES} noises, of the one-step sample's distance to the exact map.

* **first order**: Euler's error with step D; for velocity matching plus D z (derived in `theory_exact.py`).
* **predicted**: distance of the map that the method converges to, at any D.
* **measured**, **slope**: the student's distance; it projected on the predicted one, 1 where theory holds.
* **paired**: the slope once the error of the student with the exact derivative, the features' own, is taken off.

± is half the 95 % interval over {len(SEEDS)} seeds of features and samples.

| kind | D | first order | predicted | measured | slope | paired |
|---|---|---|---|---|---|---|"""
AFTER = """
Velocity matching as the engine does it draws t from D on: F below D is never trained, but every target near D reads
it. The solved loss is then free to put anything there, and does; a network is held by nothing but its start near the
teacher's velocity. With the interval min(D, t) nothing is free, and the bias is what theory says.

![Bias by interval, predicted and measured; cosine of each signal with the true one](theory.png)
"""


@dataclass(frozen=True)
class Line:
    """A row of the table; ``slope`` and ``paired`` are (mean, half the 95 % interval) over seeds."""

    kind: str
    interval: float
    first_order: float
    predicted: float
    measured: float
    slope: tuple[float, float]
    paired: tuple[float, float]


class Plane:
    """The digits in the plane: their exact velocity, noise samples, and where the exact flow carries these."""

    def __init__(self) -> None:
        images = smoothed(ImagesConfig())
        rows = images.means[::EVERY].double()
        centred = rows - rows.mean(0)
        axes = torch.linalg.svd(centred, full_matrices=False)[2][:COMPONENTS]
        self.mixture = Mixture(centred @ axes.T, SMOOTHING, images.classes[::EVERY])
        draws = torch.Generator().manual_seed(1)
        self.noise = torch.randn(NOISES, COMPONENTS, generator=draws, dtype=torch.float64)
        flow, layout = MixtureFlow(self.mixture), Dense(NOISES)
        self.map = heun(flow, self.noise, Condition(), layout, step_grid(100, 0.5), Step(0, Interpolant()))

    def velocity(self, x: Tensor, t_B: Tensor) -> Tensor:
        """The exact velocity."""
        return self.mixture.velocity(Interpolant(), x, t_B[:, None])

    def error(self, method: Method, interval: float, seed: int) -> Tensor:
        """[N, F] the error of a solved student's one-step samples."""
        student = LinearStudent(COMPONENTS, seed).solve(method, interval, self.mixture, self.velocity, seed)
        return student.one_step(self.noise) - self.map


def lines() -> list[Line]:
    """Predicted and measured errors of each kind and interval; the last line is the exact derivative's."""
    plane, found = Plane(), []
    floors = [plane.error("jvp", 0.0, seed) for seed in SEEDS]
    for interval in INTERVALS:
        euler, matched = (x - plane.map for x in exact.limits(plane.velocity, plane.noise, interval))
        for method, kind in KINDS.items():
            bias, first = (euler, euler) if method == "cm" else (matched, euler + interval * plane.noise)
            errors = [plane.error(method, interval, seed) for seed in SEEDS]
            rest = [error - floor for error, floor in zip(errors, floors, strict=True)]
            slopes = (spread([exact.slope(error, bias) for error in some]) for some in (errors, rest))
            sizes = exact.rms(first), exact.rms(bias), fmean(map(exact.rms, errors))
            found.append(Line(kind, interval, *sizes, *slopes))
    nothing = (math.nan, math.nan)
    return [*found, Line("velocity matching, jvp", 0.0, 0.0, 0.0, fmean(map(exact.rms, floors)), nothing, nothing)]


def spread(values: list[float]) -> tuple[float, float]:
    """Mean, and half the 95 % interval by Student's t."""
    return fmean(values), float(student_t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def signals(out: Path) -> list[theory_score.Signal]:
    """The signals for a network that velocity matching trained on the images themselves."""
    folder = out / "student"
    if not (folder / "student").exists():
        fewstep.distill(
            "mdt-vm", "images", config={"backbone": BACKBONE}, out=folder, resume=folder.exists(), **NETWORK
        )
    network = fewstep.load(folder, device="cpu").network
    assert isinstance(network, ImageFlow)
    data = SmoothedImages(ImagesDataConfig(prompts=1000), network)
    return theory_score.signals(network.eval(), ImageSuite(data), data)


def report(found: list[Line], scores: list[theory_score.Signal]) -> str:
    """The tables in Markdown."""
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    text = [HEAD.format(machine=platform.machine(), packages=packages)]
    for line in found:
        slopes = [f"{mean:.2f} ± {half:.2f}" if math.isfinite(mean) else "" for mean, half in (line.slope, line.paired)]
        sizes = f"{line.first_order:.3f} | {line.predicted:.3f} | {line.measured:.3f}"
        text.append(f"| {line.kind} | {line.interval:g} | {sizes} | {' | '.join(slopes)} |")
    return "\n".join([*text, AFTER, *theory_score.table(scores)]) + "\n"


def write_csv(found: list[Line], scores: list[theory_score.Signal], path: Path) -> None:
    """Every number, one per row."""
    with new_file(path) as temp, temp.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["table", "name", "at", "measure", "value"])
        for line in found:
            values = {"first_order": line.first_order, "predicted": line.predicted, "measured": line.measured}
            values |= {"slope": line.slope[0], "slope_half": line.slope[1]}
            values |= {"paired": line.paired[0], "paired_half": line.paired[1]}
            rows.writerows(["bias", line.kind, line.interval, *value] for value in values.items())
        for one in scores:
            values = {"cosine": one.cosine, "size_ratio": one.ratio, "true_size": one.true_size}
            rows.writerows(["score", one.name, one.t, *value] for value in values.items())


def draw(found: list[Line], scores: list[theory_score.Signal], path: Path) -> None:
    """Left: predicted and measured bias by interval. Right: cosine of each signal with the true one, by time."""
    with drawing(path, 9.2, 3.6) as figure:
        left, right = figure.subplots(1, 2)
        for kind, colour in ((KINDS["vm-clamped"], COLOURS[0]), (KINDS["cm"], COLOURS[1])):
            own = [line for line in found if line.kind == kind]
            at, predicted = [line.interval for line in own], [line.predicted for line in own]
            left.plot(at, predicted, "-", color=colour, label=f"{kind}: predicted")
            sizes, halves = ([line.predicted * line.paired[i] for line in own] for i in (0, 1))
            left.errorbar(at, sizes, halves, fmt="o", color=colour, capsize=3, label=f"{kind}: measured")
        left.set(xlabel="interval D", ylabel="bias of one step, rms an element", xlim=(0, None), ylim=(0, None))
        left.legend(frameon=False, fontsize=8)
        for index, name in enumerate(dict.fromkeys(one.name for one in scores)):
            line = [one for one in scores if one.name == name]
            right.plot([o.t for o in line], [o.cosine for o in line], "o-", color=COLOURS[index], label=name)
        right.axhline(0, color="#999999", linewidth=0.8)
        right.set(xlabel="time t", ylabel="cosine with the true signal", ylim=(-0.35, 1.05))
        right.legend(frameon=False, fontsize=8)


def main() -> None:
    """Write everything into the folder."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the network and of the results")
    out: Path = parser.parse_args().out
    torch.set_num_threads(1)
    scores, found = signals(out), lines()
    write_csv(found, scores, out / "theory.csv")
    draw(found, scores, out / "theory.png")
    (out / "theory.md").write_text(report(found, scores), encoding="utf-8")
    print((out / "theory.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
