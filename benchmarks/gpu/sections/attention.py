"""Timings of attention: varlen self-attention of 5k to 32k tokens, dense of 4096, cross to 1374 keys, 16 heads x 64; at
the width of TRELLIS.2 (12 heads x 128), 20k and 49k tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.bench import OURS, PEER, Bench, Case, Runs, name_of
from benchmarks.gpu.clock import Run
from benchmarks.gpu.measure import OWN_FORWARD, measure_all
from benchmarks.gpu.optable import entries, within
from benchmarks.gpu.peers.attention import AttentionPeer, Call, Function
from benchmarks.gpu.peers.wheels import PEERS
from benchmarks.gpu.work import attention_bytes, attention_flops
from fewstep.core.layout import Packed

OP = "varlen_attention"
HEADS, WIDE, CONDITION = (16, 64), (12, 128), 1374  # TRELLIS, TRELLIS.2: heads, channels per head; condition tokens
TOKENS = (8192, 16384, 5000, 32768)  # in order of importance
FINE = (20_000, 49_152)  # tokens of TRELLIS.2's fine stages: a typical object, and the maximum
RAGGED = (2713, 4096, 1999, 8191, 3517, 5003, 2048, 6007)
CAPABILITY = {"forward": "forward", "backward": "backward", "value+tangent": "jvp"}
# Lengths for FlexAttention: each further one costs half a minute of compilation.
COMPILED = frozenset({TOKENS[0], TOKENS[1], sum(RAGGED)})


def call(
    bench: Bench,
    lengths: Sequence[int],
    keys: Sequence[int] | None = None,
    dtype: Any = None,
    shape: tuple[int, int] = HEADS,
) -> Call:
    """Random q, k, v of these lengths, with heads and channels of ``shape``."""
    heads, width = bench.sizes(shape, (1, 32))
    layouts = [Packed.of_lengths(list(n), device=bench.device) for n in (lengths, keys or lengths)]
    q, k, v = (
        bench.randn(layout.rows, heads, width, dtype=dtype or bench.half())
        for layout in (layouts[0], layouts[-1], layouts[-1])
    )
    if keys is None:
        layouts = [layouts[0], layouts[0]]
    return Call(q, k, v, layouts[0], layouts[1])


def timed(function: Function, of: Call, what: str) -> Run:
    """The call to time, for one attention function."""
    if what == "forward":

        def forward() -> Tensor:
            with torch.no_grad():
                return function(of.q, of.k, of.v)

        return forward
    if what == "backward":
        leaves = [x.detach().requires_grad_() for x in (of.q, of.k, of.v)]
        out = function(*leaves)
        grad = like(out, 3)
        return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)
    moving = (of.q, of.k, of.v)
    tangents = tuple(like(x, i) for i, x in enumerate(moving))

    def both() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            found = torch.func.jvp(function, moving, tangents)
            return found[0], found[1]

    return both


def prepared(peer: AttentionPeer, of: Call, what: str) -> Run:
    """The call to time, for one peer."""
    return timed(peer.function(of), of, what)


def like(x: Tensor, seed: int) -> Tensor:
    """Standard normal numbers of the shape and type of ``x``, the same for every implementation."""
    generator = torch.Generator(x.device).manual_seed(seed)
    return torch.randn(x.shape, generator=generator, device=x.device).to(x.dtype)


def runs(bench: Bench, of: Call, what: str, only: Sequence[str] | None = None) -> Runs:
    """Our kernels, then every peer that can do ``what``.

    Args:
        only: names of the peers to include; by default all.
    """
    found, dtype = Runs(), name_of(of.q.dtype)

    def packed(function: Callable[..., Any]) -> Function:
        return lambda q, k, v: function(q, k, v, of.q_layout, of.k_layout)

    for kernel in entries(OP):
        if kernel.backend == "triton":
            reason = bench.refusal(kernel, dtype, of.args)
            found.add(kernel.name, OURS, partial(timed, packed(within(kernel)), of, what), reason)
            if what == "value+tangent":
                found.add(OWN_FORWARD, PEER, partial(timed, packed(within(kernel)), of, "forward"), reason)
    for peer in PEERS:
        if CAPABILITY[what] in peer.provides and (only is None or peer.name in only):
            late = peer.name == "flex" and (of.q.shape[0] not in COMPILED or of.q_layout is not of.k_layout)
            reason = "left out to save its compile time" if late else peer.available(of)
            found.add(peer.name, PEER, partial(prepared, peer, of, what), reason)
    return found


def case(
    bench: Bench,
    words: str,
    what: str,
    lengths: Sequence[int],
    keys: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    only: Sequence[str] | None = None,
    shape: tuple[int, int] = HEADS,
    **more: Any,
) -> Case:
    """A case of ``what`` on these lengths."""
    kind = dtype or bench.half()
    heads, width = bench.sizes(shape, (1, 32))
    of = keys or lengths
    return Case(
        OP,
        what,
        words,
        name_of(kind),
        lambda: runs(bench, call(bench, lengths, keys, kind, shape), what, only),
        attention_flops(lengths, of, heads, width, what),
        attention_bytes(sum(lengths), sum(of), heads, width, kind.itemsize, what),
        **more,
    )


def cases(bench: Bench) -> Iterator[Case]:
    """The cases in order of importance."""
    tokens = bench.sizes(TOKENS, (40, 70))
    condition = bench.sizes(CONDITION, 13)
    most = bench.sizes(tokens[0], tokens[-1])
    for n in tokens:
        yield _own(bench, n, "forward", {"varlen_attn": "varlen-forward"}, "varlen-forward-rate")
    for n in tokens:
        yield _own(bench, n, "backward", {"varlen_attn": "varlen-backward"}, "varlen-backward-rate")
    for n in tokens:
        yield _own(bench, n, "value+tangent", {OWN_FORWARD: "tangent"})
    for what in ("forward", "backward"):
        target = {"varlen_attn": "cross"} if what == "forward" else {}
        yield case(bench, f"cross {most} to {condition}", what, [most], [condition], against=target)
    bf16 = torch.float32 if bench.dry else torch.bfloat16
    peers = ("varlen_attn", "fa3")
    for n in tokens[:2]:
        yield case(bench, f"self {n}", "forward", [n], None, bf16, peers, against={"fa3": "varlen-forward-fa3"})
    dense = bench.sizes(4096, 64)
    yield case(bench, f"dense {dense}", "value+tangent", [dense], against={"sdpa-math": "tangent-math"})
    for what in ("forward", "backward"):
        yield case(bench, f"dense {dense}", what, [dense])
    ragged = bench.sizes(RAGGED, (3, 33, 1, 18))
    for what in ("forward", "backward", "value+tangent"):
        yield case(bench, f"ragged {len(ragged)} samples, {sum(ragged)}", what, ragged)
    for what in ("forward", "backward", "value+tangent"):
        for n in bench.sizes(FINE, (48, 96)):
            yield case(bench, f"self {n}, 12 x 128", what, [n], None, bf16, peers, WIDE)


def _own(bench: Bench, tokens: int, what: str, against: dict[str, str], rate: str = "") -> Case:
    return case(bench, f"self {tokens}", what, [tokens], against=against, rate=rate)


def run(bench: Bench) -> None:
    """Measure the section."""
    measure_all(bench, cases(bench), bench.sizes(1.2, 0.1))
