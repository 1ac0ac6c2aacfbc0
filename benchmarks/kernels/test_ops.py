"""One benchmark for every kernel of the op table: ``python -m pytest benchmarks/kernels/test_ops.py``.

On a GPU at TRELLIS's sizes in float16, on a CPU smaller and in float32. A kernel that refuses the call is skipped with
its reason; one that disagrees with the oracle fails and is not timed. ``--benchmark-group-by=group`` (the default) puts
competing kernels side by side. For third-party kernels, and timings with a flushed cache: ``benchmarks/gpu/run.sh``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch

from benchmarks.gpu.bench import TOLERANCE
from benchmarks.gpu.measure import relative_rms, tensors
from benchmarks.gpu.optable import entries, refusal, within
from benchmarks.gpu.sections.correct import EVERYTHING, PLAIN_ERRORS, Found, evaluate, worst
from benchmarks.gpu.sections.trials import Trial
from benchmarks.gpu.voxels import shell
from fewstep.core.layout import Packed

CUDA = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.float16) if CUDA else ("cpu", torch.float32)
HEADS, LENGTHS = (16, (2713, 5479)) if CUDA else (4, (700, 800))
VOXELS, CHANNELS = (20_000, 128) if CUDA else (3_000, 64)
CONDITION = 1374 if CUDA else 257
ROUNDS, WARM = (20, 3) if CUDA else (5, 1)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=DEVICE).to(DTYPE)


def packed(*lengths: int) -> Packed:
    return Packed.of_lengths(list(lengths), device=DEVICE)


def voxels() -> Packed:
    return Packed.of_lengths([VOXELS], shell(VOXELS), "cpu").to(DEVICE)


def attention() -> Trial:
    q, k, v = (randn(2, n, HEADS, 64) for n in (LENGTHS[0], CONDITION, CONDITION))
    return Trial(f"2 x {LENGTHS[0]} to {CONDITION}, {HEADS} x 64", (q, k, v), (0, 1, 2))


def varlen() -> Trial:
    layout = packed(*LENGTHS)
    q, k, v = randn(layout.rows, 3, HEADS, 64).unbind(1)
    return Trial(f"{LENGTHS}, {HEADS} x 64", (q, k, v, layout, layout), (0, 1, 2))


def windowed() -> Trial:
    q, k, v = randn(VOXELS, 3, HEADS, 64).unbind(1)
    return Trial(f"{VOXELS} voxels, 8^3 shifted by 4, {HEADS} x 64", (q, k, v, voxels(), 8, 4), (0, 1, 2))


def convolution() -> Trial:
    x, weight = randn(VOXELS, CHANNELS), randn(CHANNELS, 3, 3, 3, CHANNELS) * (27 * CHANNELS) ** -0.5
    return Trial(f"{VOXELS} voxels, {CHANNELS} to {CHANNELS}", (x, weight, voxels()), (0, 1))


def rows() -> tuple[str, Packed, int, int]:
    layout, width = packed(*LENGTHS), HEADS * 64
    return f"{layout.rows} x {width}", layout, layout.rows, width


def modulation() -> Trial:
    words, layout, count, width = rows()
    return Trial(words, (randn(count, width), randn(2, width), randn(2, width), layout, 1e-6), (0, 1, 2))


def gate() -> Trial:
    words, layout, count, width = rows()
    return Trial(words, (randn(count, width), randn(2, width), randn(count, width), layout), (0, 1, 2))


def heads() -> Trial:
    q, k, _ = randn(sum(LENGTHS), 3, HEADS, 64).unbind(1)
    gains = [1 + 0.1 * torch.randn(HEADS, 64, device=DEVICE) for _ in range(2)]
    return Trial(f"{sum(LENGTHS)} rows, {HEADS} x 64", (q, k, *gains, None), (0, 1, 2, 3))


CALLS: dict[str, Callable[[], Trial]] = {
    "attention": attention,
    "varlen_attention": varlen,
    "windowed_attention": windowed,
    "submanifold_conv": convolution,
    "modulated_norm": modulation,
    "gated_residual": gate,
    "qk_rms_norm": heads,
}
PASSES = {"forward": "output", "backward": "gradient", "jvp": "tangent"}


@lru_cache(maxsize=1)
def call(op: str) -> tuple[Trial, Found, Found]:
    """A call of an op, and the oracle's results in float64 and in the call's own type."""
    torch.manual_seed(0)
    trial = CALLS[op]()
    oracle = within(next(k for k in entries(op) if k.backend == "reference"))
    return trial, evaluate(oracle, trial, EVERYTHING, double=True), evaluate(oracle, trial, EVERYTHING)


@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize(("op", "name"), [(op, kernel.name) for op in CALLS for kernel in entries(op)])
def test_kernel(op: str, name: str, what: str, benchmark: Any) -> None:
    """One pass of a kernel: "backward" is forward plus backward, "jvp" is value and tangent."""
    kernel = next(k for k in entries(op) if k.name == name)
    trial, wanted, plain = call(op)
    part = PASSES[what]
    if what not in kernel.provides or not wanted[part]:
        pytest.skip(f"no {what}")
    if why := refusal(kernel, trial.args):
        pytest.skip(why)

    def run() -> Found:
        found = evaluate(within(kernel), trial, frozenset({what}))
        if CUDA:
            torch.cuda.synchronize()
        return found

    error = max(relative_rms(a, b) for a, b in zip(tensors(run()[part]), wanted[part], strict=True))
    bound = max(TOLERANCE[str(DTYPE).removeprefix("torch.")], PLAIN_ERRORS * worst(plain[part], wanted[part]))
    assert error <= bound
    benchmark.group = f"{op}, {what}: {trial.shape}"
    benchmark.extra_info.update(error=error, device=DEVICE, dtype=str(DTYPE), threads=torch.get_num_threads())
    benchmark.extra_info["torch"] = torch.__version__
    benchmark.pedantic(run, rounds=ROUNDS, warmup_rounds=WARM)
