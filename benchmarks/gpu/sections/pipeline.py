"""The whole pipeline at full size with random weights: latency by stage, one step and two a stage; the flows alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fewstep_trellis.pipeline import Pipeline, Recipe, Request, Runner, of_pictures
from fewstep_trellis.pipeline import run as stages
from fewstep_trellis.pipeline.residency import LOADING, Clock, Shelf
from fewstep_trellis.pipeline.spec import GAUSSIANS, MESH, STAGES, PipelineSpec
from PIL import Image, ImageDraw
from torch import Tensor, nn

from benchmarks.gpu.bench import OURS, PEER, Bench, Case, Runs, name_of
from benchmarks.gpu.clock import Run
from benchmarks.gpu.measure import measure
from benchmarks.gpu.rows import DRY, MEASURED, Row
from benchmarks.gpu.sections import models
from benchmarks.gpu.sections.baseline import EAGER, eager, register_baseline
from benchmarks.gpu.targets import bounds
from benchmarks.gpu.times import Timing
from benchmarks.gpu.voxels import object_layout, shell, voxels_for
from fewstep.backbone import Guidance
from fewstep.batch import Condition
from fewstep.layout import Dense

TOKENS = 8192
TARGETS = {1: "image-1", 2: "image-2"}
SPEC: dict[str, Any] = {
    "models": {role: role for role in models.generate.ROLES},
    "sparse_structure_sampler": models.generate.SAMPLER,
    "slat_sampler": models.generate.SAMPLER,
    "slat_normalization": {"mean": [0.0] * 8, "std": [1.0] * 8},
    "image_cond_model": "random",
}


class RandomPipeline(Pipeline):
    """A pipeline whose models exist nowhere but on the device."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(PipelineSpec.model_validate(SPEC), None)  # type: ignore[arg-type]
        object.__setattr__(self, "bench", bench)
        found = {stage: models.described(bench, role) for stage, role in STAGES.items()}
        self.__dict__["arguments"] = found

    def model(self, role: str) -> nn.Module:
        return models.model(self.bench, role).eval().requires_grad_(False)  # type: ignore[attr-defined]


class Resident(Shelf):
    """Every model stays on the device, as in a program that serves one picture after another."""

    def __init__(self, device: torch.device, clock: Clock, known: dict[str, Any]) -> None:
        super().__init__(device, True, clock)
        self.models = known

    @contextmanager
    def lend(self, name: str, load: Callable[[], Any]) -> Iterator[Any]:
        with self.clock(LOADING):
            if name not in self.models:
                self.models[name] = load()
        yield self.models[name]


def picture() -> Image.Image:
    """A disc on nothing."""
    image = Image.new("RGBA", (600, 600))
    ImageDraw.Draw(image).ellipse((100, 200, 500, 400), fill="red")
    return image


class Whole:
    """From a picture to Gaussians, and to the mesh decoder's cubes."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.known = bench, {"encoder": models.encoder(bench)}
        self.pipeline, self.image = RandomPipeline(bench), picture()
        edge = models.described(bench, "slat_flow_model")[1]["resolution"]
        self.voxels = bench.sizes(voxels_for(TOKENS), 60)
        coords = shell(self.voxels, edge)
        self.coords = torch.cat([torch.zeros(len(coords), 1, dtype=torch.int32), coords], 1)

    def once(self, steps: int) -> dict[str, float]:
        """Milliseconds by stage of one object, from its picture to its Gaussians."""
        recipe = Recipe("euler", steps, Guidance(), 3.0)
        run = Runner(self.pipeline, dict.fromkeys(STAGES, recipe), device=self.bench.device)
        run.shelf = Resident(self.bench.device, run.clock, self.known)
        with self._shell_for_structure():
            prompt = run.prompt(lambda encoder: of_pictures(encoder, [("a disc", self.image)]))
            run(Request(prompt), (GAUSSIANS,))
        return {stage: 1e3 * seconds for stage, seconds in run.clock.seconds.items() if stage != LOADING}

    @contextmanager
    def _shell_for_structure(self) -> Iterator[None]:
        """Random structures would fill half the grid; they are looked through, and a shell takes their place."""
        real: Callable[[Tensor], Tensor] = stages.occupied_coords

        def look(logits: Tensor) -> Tensor:
            real(logits)
            return self.coords

        stages.occupied_coords = look  # type: ignore[attr-defined]
        try:
            yield
        finally:
            stages.occupied_coords = real  # type: ignore[attr-defined]

    def report(self, steps: int, mode: str, rounds: int) -> None:
        """Rows of ``rounds`` objects after a first one that compiles and loads."""
        bench = self.bench
        self.once(steps)
        found = [self.once(steps) for _ in range(rounds)]
        totals = {"image to Gaussians": [sum(one.values()) for one in found]}
        times = totals | {stage: [one[stage] for one in found] for stage in found[0]}
        target = TARGETS.get(steps, "") if mode == OURS else ""
        for stage, values in times.items():
            whole, timing = stage in totals, Timing.of(values)
            floor, goal = bounds(target if whole else "")
            bench.book.add(
                Row(
                    bench.section,
                    "pipeline",
                    stage,
                    f"{steps} x 2 steps, {self.voxels} voxels",
                    name_of(bench.half()),
                    mode,
                    OURS if mode == OURS else PEER,
                    **{"median_ms": timing.median, "p20_ms": timing.p20, "p80_ms": timing.p80},
                    target=target if whole else "",
                    floor=floor,
                    goal=goal,
                    status=DRY if bench.dry else MEASURED,
                    note=f"{rounds} objects",
                )
            )


def network_cases(whole: Whole) -> Iterator[Case]:
    """Single networks by the device's own clock: the structure flow at batch 1, the mesh decoder without FlexiCubes."""
    bench, dtype = whole.bench, name_of(whole.bench.half())
    flow = whole.known[STAGES["ss"]]
    args = flow.model.args
    noise = bench.randn(1, args["in_channels"], *[args["resolution"]] * 3)
    cond = Condition(bench.randn(1, bench.sizes(models.TOKENS, 9), args["cond_channels"]))
    t_B = torch.full((1,), 0.7, device=bench.device)
    yield Case(
        "ss-flow", "forward", "batch 1", dtype, lambda: _both(lambda: flow(noise, t_B, cond, Dense(1))), rate="ss-flow"
    )
    decoder: Any = whole.pipeline.model(MESH)
    layout = object_layout(bench, [whole.voxels], decoder.resolution)
    z = bench.randn(layout.rows, decoder.in_channels)
    words = f"{layout.rows} voxels, without FlexiCubes"
    yield Case("mesh-decoder", "forward", words, dtype, lambda: _both(lambda: decoder(z, layout)[0]))


def _both(function: Run) -> Runs:
    def ours() -> Any:
        with torch.no_grad():
            return function()

    def baseline() -> Any:
        with torch.no_grad(), eager(torch.device("cuda" if torch.cuda.is_available() else "cpu")):
            return function()

    runs = Runs()
    runs.add(OURS, OURS, lambda: ours)
    runs.add(EAGER, PEER, lambda: baseline)
    return runs


def run(bench: Bench) -> None:
    """Rows of the section."""
    register_baseline()
    whole = Whole(bench)
    parts: list[tuple[str, Callable[[], Any]]] = [
        ("1 x 2 steps", lambda: whole.report(1, OURS, bench.sizes(7, 1))),
        ("2 x 2 steps", lambda: whole.report(2, OURS, bench.sizes(7, 1))),
        ("networks", lambda: [measure(bench, case, 1.5) for case in network_cases(whole)]),
        ("1 x 2 steps, eager", lambda: whole_eager(whole)),
    ]
    for name, part in parts:
        if bench.deadline.left < 8:
            bench.skip("pipeline", name)
            continue
        try:
            part()
        except Exception as error:
            bench.fail("pipeline", name, error)


def whole_eager(whole: Whole) -> None:
    """The baseline's latency by stage."""
    with eager(whole.bench.device):
        whole.report(1, EAGER, whole.bench.sizes(5, 1))
