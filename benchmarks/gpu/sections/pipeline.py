"""The whole pipeline at full size with random weights: latency by stage of one step, of two and of the teacher's 25."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from fewstep_trellis.pipeline.spec import MESH, STAGES

from benchmarks.gpu.bench import OURS, PEER, PLAIN, Bench, Case, Runs, name_of
from benchmarks.gpu.clock import Run
from benchmarks.gpu.measure import measure_all
from benchmarks.gpu.rows import EAGER as PLAIN_CALLS
from benchmarks.gpu.rows import GRAPH, MEASURED, Row
from benchmarks.gpu.sections import models
from benchmarks.gpu.sections.baseline import EAGER, eager, register_baseline
from benchmarks.gpu.sections.whole import Whole
from benchmarks.gpu.targets import bounds
from benchmarks.gpu.times import Timing
from benchmarks.gpu.voxels import object_layout
from fewstep.core.backbone import Teacher
from fewstep.core.batch import Condition
from fewstep.core.guidance import Guidance, sampling
from fewstep.core.layout import Dense

WARM = 2  # warm-up objects: the first compiles and loads, the second captures graphs
TARGETS = {1: "image-1", 2: "image-2"}
SPEED = {1: "speed-1", 2: "speed-2"}  # against the teacher's 25 steps in the same mode
TEACHER, GUIDED = 25, 6.0  # steps; TRELLIS-image-large's cfg_strength + 1, applied at all times instead of its interval
TOTAL = "image to Gaussians"


def report(whole: Whole, steps: int, kernel: str, rounds: int, mode: str = PLAIN_CALLS, guidance: float = 1.0) -> None:
    """Rows of ``rounds`` objects after some that compile and load.

    Args:
        steps: of each stage.
        kernel: whose, for the row.
        mode: "eager" or "graph".
        guidance: scale of both flows.
    """
    bench, teacher = whole.bench, guidance != 1.0
    for _ in range(1 if teacher else WARM):
        whole.once(steps, guidance, mode == GRAPH)
    found = [whole.once(steps, guidance, mode == GRAPH) for _ in range(rounds)]
    times = {TOTAL: [sum(one.values()) for one in found]} | {stage: [one[stage] for one in found] for stage in found[0]}
    words = f"{steps} x 2 steps{', guided' if teacher else ''}, {whole.voxels} voxels"
    for stage, values in times.items():
        timing, ours = Timing.of(values), kernel == OURS and stage == TOTAL
        target = TARGETS.get(steps, "") if ours and mode == GRAPH else ""
        row = Row(
            bench.section,
            "pipeline",
            stage,
            words,
            name_of(bench.half()),
            kernel,
            OURS if kernel == OURS else PEER,
            timing.median,
            timing.p20,
            timing.p80,
            status=MEASURED,
            note=f"{rounds} objects",
            mode=mode,
        )
        floor, goal = bounds(target)
        bench.book.add(replace(row, target=target, floor=floor, goal=goal))
        if stage == TOTAL:
            whole.medians[kernel, mode, steps] = timing.median
            if teacher:
                for few, key in SPEED.items():
                    faster(bench, row, whole.medians.get((kernel, mode, few)), few, key)


def faster(bench: Bench, teacher: Row, median: float | None, steps: int, key: str) -> None:
    """Add a row with the speed-up of few steps over the teacher's."""
    if median is None or teacher.median_ms is None:
        return
    floor, goal = bounds(key)
    words = f"{steps} x 2 steps against {TEACHER} x 2 guided"
    times = {"median_ms": median, "p20_ms": None, "p80_ms": None, "ratio": teacher.median_ms / median}
    more = {"target": key if teacher.kernel == OURS else "", "floor": floor, "goal": goal}
    bench.book.add(replace(teacher, shape=words, peer=f"{TEACHER} x 2 steps", **times, **more))  # type: ignore[arg-type]


def network_cases(whole: Whole) -> Iterator[Case]:
    """Single networks, by device time: the structure flow at batch 1, and the mesh decoder without FlexiCubes."""
    bench, dtype = whole.bench, name_of(whole.bench.half())
    flow = whole.known[STAGES["ss"]]
    args = flow.model.args
    noise = bench.randn(1, args["in_channels"], *[args["resolution"]] * 3)
    tokens = bench.randn(1, bench.sizes(models.TOKENS, 9), args["cond_channels"])
    t_B = torch.full((1,), 0.7, device=bench.device)

    def forward() -> Any:
        return flow(noise, t_B, Condition(tokens), Dense(1))

    yield Case("ss-flow", "forward", "batch 1", dtype, lambda: _both(forward), rate="ss-flow", mode=GRAPH)
    yield from guidance_cases(bench, flow)
    decoder: Any = whole.pipeline.model(MESH)
    layout = object_layout(bench, [whole.voxels], decoder.resolution)
    z = bench.randn(layout.rows, decoder.in_channels)
    words = f"{layout.rows} voxels, without FlexiCubes"
    yield Case("mesh-decoder", "forward", words, dtype, lambda: _both(lambda: decoder(z, layout)[0]))


def guidance_cases(bench: Bench, flow: Any) -> Iterator[Case]:
    """A sampler's guided evaluation as one pass over a doubled batch, as on CUDA, against two passes."""
    args, teacher = flow.model.args, Teacher(flow, Guidance(GUIDED))
    for size in (1, 4):
        noise = bench.randn(size, args["in_channels"], *[args["resolution"]] * 3)
        cond = Condition(bench.randn(size, bench.sizes(models.TOKENS, 9), args["cond_channels"]))
        evaluate = partial(teacher, noise, torch.full((size,), 0.7, device=bench.device), cond, Dense(size))

        def setup(evaluate: Run = evaluate) -> Runs:
            runs = Runs()
            runs.add("one pass", OURS, lambda: sampling()(torch.no_grad()(evaluate)))
            runs.add("two passes", PLAIN, lambda: torch.no_grad()(evaluate))
            return runs

        yield Case("ss-flow", "guided", f"batch {size}", name_of(bench.half()), setup)


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
    """Measure the section."""
    register_baseline()
    whole = Whole(bench)
    modes = [PLAIN_CALLS, *([GRAPH] if bench.device.type == "cuda" else [])]
    parts: list[tuple[str, Callable[[], Any]]] = [
        *(
            (f"{n} x 2 steps, {m}", partial(report, whole, n, OURS, bench.sizes(7, 1), m))
            for m in modes
            for n in (1, 2)
        ),
        ("networks", lambda: measure_all(bench, network_cases(whole))),
        *(
            (f"{TEACHER} x 2 steps, {mode}", partial(report, whole, bench.sizes(TEACHER, 2), OURS, 2, mode, GUIDED))
            for mode in modes
        ),
        ("1 x 2 steps, eager torch", lambda: whole_eager(whole, 1)),
        ("2 x 2 steps, eager torch", lambda: whole_eager(whole, 2)),
        (f"{TEACHER} x 2 steps, eager torch", lambda: whole_eager(whole, bench.sizes(TEACHER, 2), GUIDED)),
    ]
    bench.each("pipeline", parts, least=8.0)


def whole_eager(whole: Whole, steps: int, guidance: float = 1.0) -> None:
    """The baseline's latency by stage."""
    rounds = whole.bench.sizes(2 if guidance != 1.0 else 4, 1)
    with eager(whole.bench.device):
        report(whole, steps, EAGER, rounds, guidance=guidance)
