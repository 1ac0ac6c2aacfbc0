"""Which measure tells better from worse: every candidate measure on samples that are known to be worse.

    python benchmarks/quality/measures.py [--root SET] [--objects 48] [--out benchmarks/quality/results/measures.md]

The shipped teacher and students of the structure stage are sampled under the held-out pictures, and the teacher's
samples and the true objects are degraded on purpose. For each pair of a better and a worse set the table has the
difference of a measure in standard errors (objects resampled, the same for both sets): above 2 the measure orders the
pair rightly, below -2 wrongly, between it is blind to it. Distances to the teacher say nothing on the true objects.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from fewstep.benchmark.entrants import Stage, line_up
from fewstep.benchmark.sampling import sample
from fewstep.benchmark.students import load_students
from fewstep.config.resolve import data_of
from fewstep.core.suite import Suite
from fewstep.files import write_file
from fewstep.metrics.resampled import frechet_resampled
from fewstep.plugins.registry import registry
from fewstep.words import number

STEPS = (25, 10, 5, 3, 2, 1)  # of the teacher
BLURS = (2, 4)  # samples in a mean
KEPT = 4  # samples of a collapsed set
STUDENTS = ("mdt-vd", "pcm")
RESAMPLES, ALL_AXES = 200, 20  # resamples; fewer on all axes, which costs as much as all other measures together
CPU = torch.device("cpu")
MEASURES = (
    "frechet", "frechet, all axes", "frechet_infinity", "kid", "precision", "recall", "other_frechet",
    "teacher_frechet", "iou", "chamfer", "agree_iou", "agree_latent",
)  # fmt: skip


def pairs() -> list[tuple[str, str, str]]:
    """Pairs of sets, as (kind, better, worse)."""
    found = [("fewer steps", f"teacher, {a}", f"teacher, {b}") for a, b in pairwise(STEPS)]
    found += [("fewer steps", "teacher, 25", f"teacher, {steps}") for steps in STEPS[2:]]
    found += [("blur", "teacher, 25", f"mean of {count}") for count in BLURS]
    found += [("blur", f"mean of {BLURS[0]}", f"mean of {BLURS[1]}"), ("collapse", "teacher, 25", "collapsed")]
    return [*found, ("shift", "truth", "truth, shifted"), ("truth", "truth", "teacher, 25")]


def sets(stage: Stage, suite: Suite, count: int, console: Console) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
    """The latents of every set by name, and those of the teacher by seed."""
    batch = suite.prompts(count)
    network = registry().get("backbone", "trellis")
    cells = line_up([stage], load_students({"": network}, STUDENTS, []), (1, 2), STEPS[0])
    teacher = cells[0][0].models[0]
    students = dict.fromkeys(entrant for entrant, _ in cells if entrant.training is not None)
    jobs = [("teacher", teacher, STEPS[0], seed) for seed in range(max(BLURS))]
    jobs += [(f"teacher, {steps}", teacher, steps, 0) for steps in STEPS[1:]]
    jobs += [(f"{one.label}, {steps}", one.models[0], steps, 0) for one in students for steps in (1, 2)]
    found, seeds = {}, {}
    with Progress(console=console, transient=True) as progress:
        for name, model, steps, seed in progress.track(jobs, description="sampling"):
            console.print(f"sampling {name}, seed {seed}")
            latents = sample(model, batch, suite.noise(seed, batch), steps, seed, CPU)[0]
            if name == "teacher":
                seeds[seed] = latents
            else:
                found[name] = latents
    found = {f"teacher, {STEPS[0]}": seeds[0], **found}
    for blur in BLURS:
        found[f"mean of {blur}"] = torch.stack([seeds[seed] for seed in range(blur)]).mean(0)
    found["collapsed"] = seeds[0][torch.arange(count) % KEPT]
    return found, seeds


def values(
    suite: Suite, objects: dict[str, object], teachers: list[object], counts: Tensor, console: Console
) -> dict[str, dict[str, np.ndarray]]:
    """Every measure of every set, [1 + B]: on the whole set, then on B resamples."""
    first, other = (suite.record(one, teachers[0]) for one in teachers)
    whole = torch.cat([torch.ones_like(counts[:1]), counts])
    truth = suite.record(objects["truth"], teachers[0])["features"]
    found = {}
    with Progress(console=console, transient=True) as progress:
        for name, one in progress.track(objects.items(), description="measuring"):
            console.print(f"measuring {name}")
            record = suite.record(one, teachers[0])
            scores = suite.score(record, first, other, whole)
            scores["frechet, all axes"] = frechet_resampled(
                record["features"], truth, whole[: 1 + ALL_AXES], len(truth) ** 2
            )
            found[name] = {measure: scores[measure].numpy() for measure in MEASURES}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", help="prepared set, whose held-out objects are used; the shipped one without")
    parser.add_argument("--objects", type=int, default=48)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "measures.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console, network = Console(), registry().get("backbone", "trellis")
    backbone = network.load()
    config = network.load_config()()
    teacher, entry = backbone.teacher(config), data_of(network)
    keys = {"root": options.root} if options.root else {}
    suite = backbone.suite(config, entry.load()(entry.load_config()(**keys), teacher.backbone))
    stage = Stage("", teacher, suite)
    found, seeds = sets(stage, suite, options.objects, console)
    layout = suite.prompts(options.objects).layout
    objects = {name: suite.decode(latents, layout) for name, latents in found.items()}
    true = objects["teacher, 25"]
    grids = suite.truth[: options.objects]
    for name, shape in {"truth": grids, "truth, shifted": grids.roll(1, 1)}.items():
        objects[name] = type(true)(shape, suite.x0(options.objects), suite.views)
    teachers = [objects["teacher, 25"], suite.decode(seeds[1], layout)]
    size = options.objects
    counts = torch.from_numpy(np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), RESAMPLES)).double()
    write_file(options.out, report(suite, values(suite, objects, teachers, counts, console), size, options.root))
    console.print(f"written: {options.out}")


def apart(suite: Suite, better: np.ndarray, worse: np.ndarray, measure: str) -> float:
    """By how many standard errors the worse set is worse."""
    falls = measure.partition(",")[0] in suite.lower_is_better
    difference = (worse - better) * (1 if falls else -1)
    error = difference[1:].std(ddof=1)
    return float(difference[0] / error) if error > 0 else 0.0


def report(suite: Suite, found: dict[str, dict[str, np.ndarray]], size: int, root: str | None) -> str:
    """The tables as Markdown."""
    lines = ["# Which measure tells better from worse", "", __doc__.split("\n\n")[2].replace("\n", " ").strip(), ""]
    lines += [
        f"{size} held-out objects, structure stage. This file is made anew by "
        f"`python benchmarks/quality/measures.py{f' --root {root}' if root else ''} --objects {size}`.",
        "",
    ]
    lines += ["## Standard errors between a better and a worse set", ""]
    lines += [row(["better", "worse", *MEASURES]), row([":--", ":--", *["--:"] * len(MEASURES)])]
    marks: dict[str, list[float]] = {measure: [] for measure in MEASURES}
    for _, better, worse in pairs():
        cells = []
        for measure in MEASURES:
            if better == "truth" and measure.startswith(("other_", "teacher_", "agree_")):
                cells.append("")
                continue
            z = apart(suite, found[better][measure], found[worse][measure], measure)
            marks[measure].append(z)
            cells.append(f"**{z:.1f}**" if z < -2 else f"{z:.1f}" if z > 2 else f"({z:.1f})")
        lines.append(row([better, worse, *cells]))
    for title, chosen in {
        "rightly": lambda z: z > 2, "blind": lambda z: -2 <= z <= 2, "wrongly": lambda z: z < -2
    }.items():  # fmt: skip
        lines.append(row([title, "", *(str(sum(map(chosen, marks[measure]))) for measure in MEASURES)]))
    lines += ["", "Bold: wrongly. In brackets: blind.", "", "## Values", ""]
    lines += [row(["set", *MEASURES]), row([":--", *["--:"] * len(MEASURES)])]
    lines += [
        row([name, *(number(float(scores[measure][0])) for measure in MEASURES)]) for name, scores in found.items()
    ]
    return "\n".join(lines) + "\n"


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
