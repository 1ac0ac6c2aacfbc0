"""Timings of QK norm, modulated norm and gated residual: fused against eager, 8192 tokens x 1024 channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.bench import Bench, Case, Runs, name_of
from benchmarks.gpu.clock import Run
from benchmarks.gpu.measure import measure_all, tensors
from fewstep.core.layout import Packed

TOKENS, CHANNELS, HEADS, SAMPLES = 8192, 1024, 16, 2
# Tensors of [tokens, channels] moved through memory: (forward, backward).
TRAFFIC = {"qk_rms_norm": (4, 6), "modulated_norm": (2, 3), "gated_residual": (3, 4)}


def arguments(bench: Bench, op: str) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    """A call of an op, and the positions of its differentiable arguments."""
    tokens, channels = bench.sizes((TOKENS, CHANNELS), (24, 32))
    half, each = bench.half(), [tokens // SAMPLES - 5, tokens - tokens // SAMPLES + 5]
    layout = Packed.of_lengths(each, device=bench.device)

    def rows(count: int = tokens, width: int = channels) -> Tensor:
        return bench.randn(count, width, dtype=half)

    if op == "qk_rms_norm":
        heads = bench.sizes(HEADS, 2)
        q, k, _ = bench.randn(tokens, 3, heads, channels // heads, dtype=half).unbind(1)
        gains = [1 + 0.1 * bench.randn(heads, channels // heads) for _ in range(2)]
        return (q, k, *gains, None), (0, 1, 2, 3)
    if op == "modulated_norm":
        return (rows(), rows(SAMPLES), rows(SAMPLES), layout, 1e-6), (0, 1, 2)
    if op == "gated_residual":
        return (rows(), rows(SAMPLES), rows(), layout), (0, 1, 2)
    weight = (bench.randn(4 * channels, channels) * channels**-0.5).to(half)
    return (rows(), weight, rows(1, 4 * channels)[0]), ()


def timed(function: Callable[..., Any], args: Sequence[Any], wrt: Sequence[int], what: str) -> Run:
    """The call to time: forward without a graph, or backward through a retained graph."""
    if what == "forward":

        def forward() -> Any:
            with torch.no_grad():
                return function(*args)

        return forward
    leaves = {i: args[i].detach().requires_grad_() for i in wrt}
    outs = tensors(function(*(leaves.get(i, a) for i, a in enumerate(args))))
    grads = [torch.ones_like(x) for x in outs]
    return lambda: torch.autograd.grad(outs, list(leaves.values()), grads, retain_graph=True)


def runs(bench: Bench, op: str, what: str) -> Runs:
    """Every kernel of the op. The oracle, a sequence of elementary operations, stands for eager torch."""
    found, (args, wrt) = Runs(), arguments(bench, op)
    found.table(bench, op, name_of(bench.half()), args, lambda function: timed(function, args, wrt, what))
    return found


def cases(bench: Bench) -> Iterator[Case]:
    """The cases in order of importance."""
    tokens, channels = bench.sizes((TOKENS, CHANNELS), (24, 32))
    dtype = bench.half()
    for op, counts in TRAFFIC.items():
        for what, count in zip(("forward", "backward"), counts, strict=True):
            words, moved = f"{tokens} x {channels}", float(count * tokens * channels * dtype.itemsize)
            yield Case(op, what, words, name_of(dtype), lambda o=op, w=what: runs(bench, o, w), 0.0, moved)  # type: ignore[misc]


def run(bench: Bench) -> None:
    """Measure the section."""
    measure_all(bench, cases(bench), bench.sizes(0.6, 0.1))
