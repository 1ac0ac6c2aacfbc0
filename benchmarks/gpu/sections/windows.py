"""Timings of windowed attention, 8^3 on 20k voxels: with and without a copy into window order, layout cached or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from fewstep_shapes3d.sparse.windows import partitioned, windows
from torch import Tensor

from benchmarks.gpu.bench import OURS, PEER, Bench, Case, Runs, name_of
from benchmarks.gpu.clock import Run
from benchmarks.gpu.measure import measure_all
from benchmarks.gpu.optable import entries, within
from benchmarks.gpu.peers.attention import AttentionPeer, Call, VarlenAttn
from benchmarks.gpu.sections.attention import timed
from benchmarks.gpu.voxels import fresh, object_layout
from benchmarks.gpu.work import attention_bytes, attention_flops
from fewstep.core.layout import Packed
from fewstep.ops.table import Kernel

OP = "windowed_attention"
VOXELS, HEADS, WIDTH, SIZE, SHIFT = 20_000, 12, 64, 8, 4
COPIED = "triton, copied into window order"


def over_windows(peer: AttentionPeer, of: Call, layout: Packed) -> Callable[..., Tensor]:
    """A packed peer on windows: copy rows into window order, attend, copy back."""
    found = windows(layout, SIZE, SHIFT)
    function = peer.function(Call(of.q, of.k, of.v, found.layout, found.layout))

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return function(*(x[found.order] for x in (q, k, v)))[found.inverse]

    return run


def runs(bench: Bench, what: str, known: bool) -> Runs:
    """Ours without a copy, ours with one, varlen_attn with one.

    Args:
        known: the windows are worked out before; otherwise in each call.
    """
    layout = object_layout(bench, [bench.sizes(VOXELS, 40)], bench.sizes(64, 8))
    heads, width = bench.sizes((HEADS, WIDTH), (1, 32))
    q, k, v = (bench.randn(layout.rows, heads, width, dtype=bench.half()) for _ in range(3))
    of, found, dtype = Call(q, k, v, layout, layout), Runs(), name_of(bench.half())
    args = (q, k, v, layout, SIZE, SHIFT)

    def made(build: Callable[[Packed], Callable[..., Tensor]]) -> Run:
        if known:
            return timed(build(layout), of, what)
        return lambda: timed(build(fresh(layout)), of, what)()

    def direct(function: Any) -> Callable[[Packed], Callable[..., Tensor]]:
        return lambda where: lambda q, k, v: function(q, k, v, where, SIZE, SHIFT)

    for kernel in entries(OP):
        if kernel.backend != "triton":
            continue
        reason = bench.refusal(kernel, dtype, args)
        copied = Kernel(COPIED, OP, partitioned, kernel.provides, backend="triton")
        for entry in (kernel, copied):
            found.add(entry.name, OURS, partial(made, direct(within(entry))), reason)
    peer = VarlenAttn()
    found.add(peer.name, PEER, lambda: made(lambda where: over_windows(peer, of, where)), peer.available(of))
    return found


def cases(bench: Bench) -> Iterator[Case]:
    """The cases; those that include the layout first, for they count for the target."""
    layout = object_layout(bench, [bench.sizes(VOXELS, 40)], bench.sizes(64, 8))
    lengths = windows(layout, SIZE, SHIFT).layout.lengths_list
    heads, width = bench.sizes((HEADS, WIDTH), (1, 32))
    dtype = bench.half()
    for what, known in (("forward", False), ("forward", True), ("backward", True), ("value+tangent", True)):
        words = "layout known" if known else "layout included"
        yield Case(
            OP,
            what,
            f"{layout.rows} voxels, {len(lengths)} windows of {SIZE}^3 shifted by {SHIFT}, {words}",
            name_of(dtype),
            lambda what=what, known=known: runs(bench, what, known),  # type: ignore[misc]
            attention_flops(lengths, lengths, heads, width, what),
            attention_bytes(layout.rows, layout.rows, heads, width, dtype.itemsize, what),
            against={} if known else {"varlen_attn": "windowed"},
        )


def run(bench: Bench) -> None:
    """Measure the section."""
    measure_all(bench, cases(bench))
