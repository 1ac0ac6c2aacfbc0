"""The whole pipeline at full size with random weights: latency by stage, one step and two a stage; the flows alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from fewstep_trellis.pipeline.spec import MESH, STAGES

from benchmarks.gpu.bench import OURS, PEER, Bench, Case, Runs, name_of
from benchmarks.gpu.clock import Run
from benchmarks.gpu.measure import measure_all
from benchmarks.gpu.rows import MEASURED, Row
from benchmarks.gpu.sections import models
from benchmarks.gpu.sections.baseline import EAGER, eager, register_baseline
from benchmarks.gpu.sections.whole import Whole
from benchmarks.gpu.targets import bounds
from benchmarks.gpu.times import Timing
from benchmarks.gpu.voxels import object_layout
from fewstep.core.batch import Condition
from fewstep.core.layout import Dense

WARM = 2  # objects before the timed ones: the first compiles and loads
TARGETS = {1: "image-1", 2: "image-2"}


def report(whole: Whole, steps: int, mode: str, rounds: int) -> None:
    """Rows of ``rounds`` objects after some that compile and load."""
    bench = whole.bench
    for _ in range(WARM):
        whole.once(steps)
    found = [whole.once(steps) for _ in range(rounds)]
    totals = {"image to Gaussians": [sum(one.values()) for one in found]}
    times = totals | {stage: [one[stage] for one in found] for stage in found[0]}
    target = TARGETS.get(steps, "") if mode == OURS else ""
    for stage, values in times.items():
        total, timing = stage in totals, Timing.of(values)
        floor, goal = bounds(target if total else "")
        bench.book.add(
            Row(
                bench.section,
                "pipeline",
                stage,
                f"{steps} x 2 steps, {whole.voxels} voxels",
                name_of(bench.half()),
                mode,
                PEER if mode == EAGER else OURS,
                timing.median,
                timing.p20,
                timing.p80,
                target=target if total else "",
                floor=floor,
                goal=goal,
                status=MEASURED,
                note=f"{rounds} objects",
            )
        )


def network_cases(whole: Whole) -> Iterator[Case]:
    """Single networks by the device's own clock: the structure flow at batch 1, the mesh decoder without FlexiCubes."""
    bench, dtype = whole.bench, name_of(whole.bench.half())
    flow = whole.known[STAGES["ss"]]
    args = flow.model.args
    noise = bench.randn(1, args["in_channels"], *[args["resolution"]] * 3)
    tokens = bench.randn(1, bench.sizes(models.TOKENS, 9), args["cond_channels"])
    t_B = torch.full((1,), 0.7, device=bench.device)

    def forward() -> Any:
        return flow(noise, t_B, Condition(tokens), Dense(1))

    yield Case("ss-flow", "forward", "batch 1", dtype, lambda: _both(forward), rate="ss-flow")
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
        ("1 x 2 steps", lambda: report(whole, 1, OURS, bench.sizes(7, 1))),
        ("2 x 2 steps", lambda: report(whole, 2, OURS, bench.sizes(7, 1))),
        ("networks", lambda: measure_all(bench, network_cases(whole))),
        ("1 x 2 steps, eager", lambda: whole_eager(whole)),
    ]
    bench.each("pipeline", parts, least=8.0)


def whole_eager(whole: Whole) -> None:
    """The baseline's latency by stage."""
    with eager(whole.bench.device):
        report(whole, 1, EAGER, whole.bench.sizes(5, 1))
