"""The MDT training step at TRELLIS's size: ours against the same algorithm in eager torch with FlashAttention-2.

Random weights, float32 student under autocast to float16, teacher with a float16 torso, the published presets, AdamW.
Eager is FEWSTEP_OPS=torch, attention by varlen_attn and SDPA's flash backend, convolution by
spconv-triton where its wheel is installed. Gradients of both are compared with the same step entirely in float32.
"""

from __future__ import annotations

import gc
import itertools
from dataclasses import replace
from typing import Any

import torch
from fewstep_mdt.config import MDTConfig
from fewstep_mdt.vd import MDT
from fewstep_trellis.backbone import StructureFlow
from fewstep_trellis.shipped import NANO
from torch import Tensor

from benchmarks.gpu.bench import OURS, PEER, Bench, Case, Runs, brief, name_of
from benchmarks.gpu.clock import Run
from benchmarks.gpu.measure import measure
from benchmarks.gpu.rows import EAGER as PLAIN_CALLS
from benchmarks.gpu.rows import FAILED, GRAPH, MEASURED, Row
from benchmarks.gpu.sections.baseline import EAGER, register_baseline
from benchmarks.gpu.sections.training import Training
from benchmarks.gpu.targets import bounds
from fewstep.config.train import TrainConfig
from fewstep.core.backbone import Teacher
from fewstep.core.batch import Batch, Condition
from fewstep.core.dataset import Dataset
from fewstep.core.guidance import Guidance
from fewstep.core.layout import Dense
from fewstep.core.objective import Objective
from fewstep.engine.trainer import Trainer


def compare(bench: Bench, stage: str) -> None:
    """Compare gradients: ours and eager, each with float32, and with each other."""
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
    """Relative RMS error over all parameters together."""
    apart, size = (
        torch.stack(parts).sum().sqrt()
        for parts in zip(
            *(((found[k] - w).double().square().sum(), w.double().square().sum()) for k, w in wanted.items()),
            strict=True,
        )
    )
    return float(apart / size)


def timed(bench: Bench, stage: str, kind: str, samples: tuple[int, ...], recompute: str = "none") -> None:
    """Time the step at the largest batch that fits."""
    for count in samples:
        try:
            _timed(bench, Training(bench, stage, count, kind, recompute), kind, recompute)
            return
        except torch.OutOfMemoryError as error:
            note = brief(error)
        # Outside the except block: until its end the exception keeps the frames, and their tensors, alive.
        words = f"{stage}, batch {count}, recompute {recompute}"
        bench.book.add(Row(bench.section, "mdt-step", "step", words, status=FAILED, note=note))
        gc.collect()
        torch.cuda.empty_cache()


def _timed(bench: Bench, training: Training, kind: str, recompute: str) -> None:
    alone = kind != "discrete" or recompute != "none"
    training.fit_scale()
    for baseline in (False,) if alone else (False, True):
        training.run(baseline)()  # out of memory must show here, not in the timing
    measure(bench, _case(training, kind, recompute, alone), min(8.0, bench.deadline.left / 3))


def _case(training: Training, kind: str, recompute: str, alone: bool) -> Case:
    def setup() -> Runs:
        runs = Runs()
        runs.add(OURS, OURS, lambda: training.run(False))
        if not alone:
            runs.add(EAGER, PEER, lambda: training.run(True))
        return runs

    words = f"{training.words}, {kind}" + (f", recompute {recompute}" if recompute != "none" else "")
    against = {EAGER: "train-step"}
    return Case("mdt-step", "step", words, name_of(training.bench.half()), setup, against=against, recordable=False)


class Same(Dataset):
    """The same batch each time, already on the device."""

    given: Batch

    def __len__(self) -> int:
        return self.given.layout.batch_size

    def batch(self, indices: list[int], generator: torch.Generator) -> Batch:
        return self.given

    def training_batch(self, *_: Any, **__: Any) -> Batch:
        return self.given


def engine(bench: Bench, words: str, objective: Objective[Any], teacher: Teacher, batch: Batch) -> None:
    """Time an iteration of ``fewstep distill`` with optimiser and EMA, plain and with ``train.graphs``."""
    data, runs = Same(None, teacher.backbone), dict[str, Run]()
    data.given = batch
    half = "fp32" if bench.dry else "fp16"
    for mode in (PLAIN_CALLS, GRAPH) if bench.device.type == "cuda" else (PLAIN_CALLS,):
        keys: dict[str, Any] = {"ema": (0.9999,), "clip": "adaptive", "precision": half, "graphs": mode == GRAPH}
        config = TrainConfig(steps=10**6, batch_size=len(data), lr=1e-9, device=bench.device.type, **keys)
        runs[mode] = _iterating(Trainer(objective, teacher, data, config))
    for mode, timing in bench.clock.in_turn(runs, min(8.0, bench.deadline.left / 3)).items():
        times = {"median_ms": timing.median, "p20_ms": timing.p20, "p80_ms": timing.p80, "host_ms": timing.host}
        row = Row(bench.section, "engine-step", "step", words, half, OURS, OURS, status=MEASURED, mode=mode)
        bench.book.add(replace(row, note=f"{timing.rounds} rounds", **times))  # type: ignore[arg-type]


def _iterating(trainer: Trainer) -> Run:
    steps = itertools.count()

    def iterate() -> None:
        trainer._iteration(next(steps))
        for _ in trainer._settled(everything=False):
            pass

    return iterate


def nano(bench: Bench) -> None:
    """The shipped small structure flow at batch 64, which is host-bound on a GPU."""
    teacher = Teacher(StructureFlow.load_file(NANO / "ss_flow").to(bench.device), Guidance(3.0))
    args, count = teacher.backbone.model.args, bench.sizes(64, 2)  # type: ignore[union-attr]
    x0 = bench.randn(count, args["in_channels"], *[args["resolution"]] * 3)
    cond = Condition(bench.randn(count, bench.sizes(257, 9), args["cond_channels"]))
    engine(bench, f"nano ss, batch {count}", MDT(MDTConfig()), teacher, Batch(x0, Dense(count), cond))


def large(bench: Bench) -> None:
    """The structure flow of the official size."""
    training = Training(bench, "ss", bench.sizes(2, 1))
    training.nets = training.student = None  # type: ignore[assignment]  # the engine makes its own
    engine(bench, training.words, training.objective, training.teacher, training.batch)


def run(bench: Bench) -> None:
    """Measure the section."""
    register_baseline()
    parts: list[tuple[str, Any]] = [
        ("ss step", lambda: timed(bench, "ss", "discrete", bench.sizes((4, 2, 1), (1,)))),
        ("nano engine step", lambda: nano(bench)),
        ("ss engine step", lambda: large(bench)),
        ("ss step, recomputed", lambda: timed(bench, "ss", "discrete", bench.sizes((8, 4), (1,)), "selective")),
        ("slat step", lambda: timed(bench, "slat", "discrete", bench.sizes((2, 1), (1,)))),
        ("ss gradient", lambda: compare(bench, "ss")),
        ("slat gradient", lambda: compare(bench, "slat")),
        ("ss continuous step", lambda: timed(bench, "ss", "continuous", bench.sizes((1,), (1,)))),
        ("slat continuous step", lambda: timed(bench, "slat", "continuous", bench.sizes((1,), (1,)))),
    ]
    bench.each("mdt-step", parts, least=10.0)
