"""The MDT training step at TRELLIS's size: ours against the same algorithm in eager torch with FlashAttention-2.

Random weights, float32 student under autocast to float16, teacher with a float16 torso, the published presets, AdamW.
Eager is FEWSTEP_OPS=torch, attention by varlen_attn and SDPA's flash backend, convolution by
spconv-triton where its wheel is there. Gradients of both are held against the same step in float32 throughout.
"""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.bench import OURS, PEER, Bench, Case, Runs, brief, name_of
from benchmarks.gpu.measure import measure
from benchmarks.gpu.rows import FAILED, MEASURED, Row
from benchmarks.gpu.sections.baseline import EAGER, register_baseline
from benchmarks.gpu.sections.training import Training
from benchmarks.gpu.targets import bounds


def compare(bench: Bench, stage: str) -> None:
    """Rows of gradients: ours, eager, each against float32, and their difference."""
    training = Training(bench, stage, 1)
    scale = training.fit_scale()
    found = {}
    for name, baseline in ((OURS, False), (EAGER, True)):
        with training.mode(baseline):
            found[name] = {k: g / training.scale for k, g in training.gradients().items()}
    teacher: Any = training.teacher.backbone
    teacher.model.convert_to_fp32()
    training.scale = 1.0
    with training.mode(True, exact=True):
        exact = training.gradients()
    errors = {name: _distance(grads, exact) for name, grads in found.items()}
    apart = _distance(found[OURS], found[EAGER])
    floor, goal = bounds("train-gradient")
    for name, role in ((OURS, OURS), (EAGER, PEER)):
        own = {"peer": EAGER, "ratio": errors[OURS] / max(errors[EAGER], 1e-12), "target": "train-gradient"}
        note = f"relative RMS to float32; between the two {apart:.2e}; loss scale {scale:g}"
        more: dict[str, Any] = {"floor": floor, "goal": goal, **own} if name == OURS else {}
        kind = name_of(bench.half())
        bench.book.add(
            Row(
                bench.section,
                "mdt-step",
                "gradient",
                training.words,
                kind,
                name,
                role,
                error=errors[name],
                status=MEASURED,
                note=note,
                **more,
            )
        )


def _distance(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Relative RMS over all parameters together."""
    apart, size = (
        torch.stack(parts).sum().sqrt()
        for parts in zip(
            *(((found[k] - w).double().square().sum(), w.double().square().sum()) for k, w in wanted.items()),
            strict=True,
        )
    )
    return float(apart / size)


def timed(bench: Bench, stage: str, kind: str, samples: tuple[int, ...]) -> None:
    """Rows of the step, at the largest batch that fits."""
    for count in samples:
        try:
            _timed(bench, Training(bench, stage, count, kind), kind)
            return
        except torch.OutOfMemoryError as error:
            note = brief(error)
        # Behind the block: the exception held everything that it came through.
        bench.book.add(Row(bench.section, "mdt-step", "step", f"{stage}, batch {count}", status=FAILED, note=note))
        gc.collect()
        torch.cuda.empty_cache()


def _timed(bench: Bench, training: Training, kind: str) -> None:
    training.fit_scale()
    for baseline in (False, True)[: 2 if kind == "discrete" else 1]:
        training.run(baseline)()  # out of memory is to be met here
    measure(bench, _case(training, kind), min(8.0, bench.deadline.left / 3))


def _case(training: Training, kind: str) -> Case:
    def setup() -> Runs:
        runs = Runs()
        runs.add(OURS, OURS, lambda: training.run(False))
        if kind == "discrete":
            runs.add(EAGER, PEER, lambda: training.run(True))
        return runs

    words = f"{training.words}, {kind}"
    return Case("mdt-step", "step", words, name_of(training.bench.half()), setup, against={EAGER: "train-step"})


def run(bench: Bench) -> None:
    """Rows of the section."""
    register_baseline()
    parts: list[tuple[str, Any]] = [
        ("ss step", lambda: timed(bench, "ss", "discrete", bench.sizes((4, 2, 1), (1,)))),
        ("slat step", lambda: timed(bench, "slat", "discrete", bench.sizes((2, 1), (1,)))),
        ("ss gradient", lambda: compare(bench, "ss")),
        ("slat gradient", lambda: compare(bench, "slat")),
        ("ss continuous step", lambda: timed(bench, "ss", "continuous", bench.sizes((1,), (1,)))),
    ]
    bench.each("mdt-step", parts, least=10.0)
