"""Timings of submanifold convolution, 3^3: 128 and 1024 channels at 20k and 5k voxels, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from fewstep_shapes3d.sparse.geometry import neighbours
from torch import Tensor

from benchmarks.gpu.bench import PEER, Bench, Case, Runs, name_of
from benchmarks.gpu.clock import Run
from benchmarks.gpu.measure import measure_all
from benchmarks.gpu.peers.convolution import SPCONV
from benchmarks.gpu.sections.attention import like
from benchmarks.gpu.voxels import fresh, object_layout
from benchmarks.gpu.work import convolution_bytes, convolution_flops
from fewstep.core.layout import Packed

OP = "submanifold_conv"
SHAPES = ((20_000, 128), (5_000, 1024), (20_000, 1024), (5_000, 128))
OFFSETS = 27
Convolve = Callable[[Tensor, Tensor, Packed], Tensor]


def timed(function: Convolve, x: Tensor, weight: Tensor, layout: Packed, what: str) -> Run:
    """The call to time, for one convolution; "forward, map included" rebuilds the neighbour map in each call."""
    if what == "forward+backward":
        leaves = [v.detach().requires_grad_() for v in (x, weight)]
        grad = like(x.new_empty(len(x), len(weight)), 3)
        return lambda: torch.autograd.grad(function(leaves[0], leaves[1], layout), leaves, grad)
    if what == "value+tangent":
        moving, tangents = (x, weight), (like(x, 4), like(weight, 5))

        def both() -> Any:
            with torch.no_grad():
                return torch.func.jvp(lambda a, b: function(a, b, layout), moving, tangents)

        return both
    known = what == "forward"

    def forward() -> Tensor:
        with torch.no_grad():
            return function(x, weight, layout if known else fresh(layout))

    return forward


def runs(bench: Bench, voxels: int, channels: int, what: str) -> Runs:
    """Every kernel of the op table except the oracle, and spconv-triton."""
    layout, dtype, found = object_layout(bench, [voxels]), bench.half(), Runs()
    x = bench.randn(voxels, channels, dtype=dtype)
    weight = (bench.randn(channels, 3, 3, 3, channels) * (OFFSETS * channels) ** -0.5).to(dtype)

    def use(function: Convolve) -> Run:
        return timed(function, x, weight, layout, what)

    found.table(bench, OP, name_of(dtype), (x, weight, layout), use)
    if what != "value+tangent":
        found.add(SPCONV.name, PEER, lambda: use(SPCONV.run), SPCONV.available(x))
    return found


def cases(bench: Bench) -> Iterator[Case]:
    """The cases in order of importance."""
    dtype = bench.half()
    for what in ("forward+backward", "forward", "forward, map included", "value+tangent"):
        for voxels, channels in bench.sizes(SHAPES, ((40, 16),)):
            layout = object_layout(bench, [voxels])
            pairs = int((neighbours(layout).table >= 0).sum())
            counted = what.partition(",")[0]
            aim = what == "forward+backward" and (voxels, channels) == SHAPES[0]
            yield Case(
                OP,
                what,
                f"{voxels} voxels, {channels} to {channels}",
                name_of(dtype),
                lambda v=voxels, c=channels, what=what: runs(bench, v, c, what),  # type: ignore[misc]
                convolution_flops(pairs, channels, channels, counted),
                convolution_bytes(voxels, channels, channels, OFFSETS, dtype.itemsize, OFFSETS, counted),
                against={SPCONV.name: "convolution"} if aim else {},
            )


def run(bench: Bench) -> None:
    """Measure the section."""
    measure_all(bench, cases(bench))
