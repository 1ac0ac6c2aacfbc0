"""An MDT step and sampling at the nano size on a CPU, with and without what ``fewstep.ops.economy`` saves.

``python -m pytest benchmarks/kernels/test_mdt_step_cpu.py --benchmark-json=...``: all in one run, rounds in turn, the
same seeds; gradients of both are compared. Fails below 1.3 for the step of the structure flow.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest
import torch
from fewstep.ops.economy import SWITCHES, economy, on
from fewstep_mdt.config import MDTConfig
from fewstep_mdt.vd import MDT
from fewstep_trellis.backbone import StructureFlow, TrellisConfig
from fewstep_trellis.slat import SLatConfig, StructuredLatentFlow
from torch import Tensor

from fewstep.core.backbone import Teacher
from fewstep.core.batch import Batch, Condition
from fewstep.core.layout import Dense, Packed
from fewstep.core.objective import Nets, Step, means
from fewstep.core.samplers import euler

ROUNDS = 9
TOKENS = 65  # of one picture, for the shipped nano models
Case = tuple[Teacher, Batch]


def structure() -> Case:
    """The shipped structure flow at its presets' batch of 16."""
    return StructureFlow.teacher(TrellisConfig()), Batch(torch.randn(16, 8, 8, 8, 8), Dense(16), _condition(16))


def latents() -> Case:
    """The shipped latent flow at its presets' batch of 4, on shells of 600 to 711 voxels."""
    cells = torch.cartesian_prod(*[torch.arange(32)] * 3)
    shell = cells[((cells - 15.5).square().sum(1).sqrt() - 11).abs() < 1.0]
    lengths = [600, 637, 674, 711]
    layout = Packed.of_lengths(lengths, torch.cat([shell[torch.randperm(len(shell))[:n]] for n in lengths]))
    return StructuredLatentFlow.teacher(SLatConfig()), Batch(torch.randn(layout.rows, 8), layout, _condition(4))


def _condition(batch: int) -> Condition:
    return Condition(torch.randn(batch, TOKENS, 48))


def fresh(batch: Batch) -> Batch:
    """Nothing is kept from an earlier round."""
    layout = batch.layout
    if isinstance(layout, Packed):
        layout = Packed(layout.cu_seqlens, layout.coords)
    return Batch(batch.x0, layout, Condition(batch.cond.tokens))


def step(case: Case) -> Callable[[], list[Tensor]]:
    teacher, batch = case
    student = teacher.backbone.student().train().requires_grad_(True)
    nets = Nets({"teacher": teacher, "student": student}, {})

    def run() -> list[Tensor]:
        losses = means(MDT(MDTConfig()).loss(fresh(batch), nets, Step(0, teacher.interpolant, seed=3)))
        total = torch.stack(list(losses.values())).sum()
        found = torch.autograd.grad(total, list(student.parameters()), allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(student.parameters(), found, strict=True)]

    return run


def sampling(case: Case, steps: int, guided: bool) -> Callable[[], list[Tensor]]:
    teacher, batch = case
    grid = [1 - i / steps for i in range(steps + 1)]

    def run() -> list[Tensor]:
        given, field = fresh(batch), teacher if guided else teacher.backbone
        return [euler(field, given.x0, given.cond, given.layout, grid, Step(0, teacher.interpolant))]

    return run


WORK: dict[str, Callable[[Case], Callable[[], list[Tensor]]]] = {
    "mdt step": step,
    "teacher, 5 steps": lambda case: sampling(case, 5, True),
    "student, 2 steps": lambda case: sampling(case, 2, False),
}


def timed(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def difference(got: list[Tensor], wanted: list[Tensor]) -> float:
    """Relative, over all tensors together."""
    squares = [(float((a - b).square().sum()), float(b.square().sum())) for a, b in zip(got, wanted, strict=True)]
    return float((sum(d for d, _ in squares) / sum(w for _, w in squares)) ** 0.5)


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("build", [structure, latents])
def test_less_work(build: Callable[[], Case], work: str, benchmark: Any) -> None:
    torch.manual_seed(0)
    run = WORK[work](build())
    single = {name: (name,) for name in SWITCHES if work == "mdt step"}
    default = tuple(switch for switch in SWITCHES if on(switch))
    sets: dict[str, tuple[str, ...]] = {"none": (), **single, "default": default}
    results: dict[str, list[Tensor]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in sets}
    for _ in range(ROUNDS):
        for name, switches in sets.items():
            with economy(*switches):
                if name not in results:
                    results[name] = run()
                seconds[name].append(timed(run))
    change = difference(results["default"], results["none"])
    ratios = {name: round(median(seconds["none"]) / median(taken), 3) for name, taken in seconds.items()}
    benchmark.extra_info.update(
        ratio_of_medians=ratios,
        ratio_of_minima=round(min(seconds["none"]) / min(seconds["default"]), 3),
        median_seconds={name: round(median(taken), 4) for name, taken in seconds.items()},
        relative_difference=change,
        threads=torch.get_num_threads(),
        rounds=ROUNDS,
        torch=torch.__version__,
    )
    benchmark.pedantic(run, rounds=1)
    print(f"\n{build.__name__}, {work}: {ratios}, difference {change:.1e}")
    assert change < 1e-4
    if work == "mdt step" and build is structure:
        assert ratios["default"] >= 1.3
