"""CUDA graphs: a function of tensors that is recorded once and then replayed, which costs the host one launch.

Everything but its inputs is read where it lay when the function was recorded: weights must be changed in place and
stay on their device.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fewstep.core.batch import Condition
from fewstep.core.guidance import VelocityField
from fewstep.core.layout import Dense, Layout
from fewstep.errors import first_line

Tensors = tuple[Tensor, ...]
WARM = 2  # calls before recording, so that libraries have chosen their algorithms
TOLERANCE = 1e-3  # relative RMS between a replay and a plain call; kernels that add atomically differ a little


class Graph(Protocol):
    """What records and replays."""

    def record(self, run: Callable[[], None]) -> None:
        """Note what ``run`` launches. Memory that it allocates stays its own."""

    def replay(self) -> None:
        """Launch that again."""


class CudaGraph:
    """``torch.cuda.CUDAGraph``, recorded as torch's notes on CUDA semantics ask for."""

    def __init__(self) -> None:
        self.graph = torch.cuda.CUDAGraph()

    def record(self, run: Callable[[], None]) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM):
                run()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(self.graph):
            run()

    def replay(self) -> None:
        self.graph.replay()


class _Recorded:
    """A function on inputs of one kind. New inputs are copied over ``inputs``, and a replay overwrites ``outputs``."""

    def __init__(self, function: Callable[..., Tensors], inputs: Sequence[Tensor], graph: Graph) -> None:
        self.inputs, self.graph = inputs, graph
        self.outputs: Tensors = ()

        def run() -> None:
            self.outputs = function(*self.inputs)

        graph.record(run)

    def __call__(self, inputs: Sequence[Tensor]) -> Tensors:
        for kept, given in zip(self.inputs, inputs, strict=True):
            kept.copy_(given)
        self.graph.replay()
        return self.outputs


class Graphed:
    """Replays functions on inputs of a kind that was seen before; new kinds, and what cannot be recorded, run plainly.

    The first call of a kind runs plainly. The second records, and the first replay is held against a plain call: where
    they differ, the function is never replayed and ``say`` is told why.

    Args:
        say: takes a line for the user.
        graph: makes what records.
    """

    def __init__(self, say: Callable[[str], None], graph: Callable[[], Graph] = CudaGraph) -> None:
        self.say, self.graph = say, graph
        self.known: dict[Hashable, _Recorded | None] = {}
        self.seen: set[Hashable] = set()

    def __call__(self, key: Hashable, function: Callable[..., Tensors], inputs: Sequence[Tensor]) -> Tensors:
        """``function(*inputs)``. The outputs of a replay are overwritten by the next one.

        Args:
            key: names the function; equal keys must do the same with inputs of equal shapes and types.
        """
        kind = (key, *((x.shape, x.dtype, x.device) for x in inputs))
        if kind not in self.seen:
            self.seen.add(kind)
            return function(*inputs)
        if kind not in self.known:
            return self._first(kind, function, inputs)
        recorded = self.known[kind]
        return function(*inputs) if recorded is None else recorded(inputs)

    def _first(self, kind: Hashable, function: Callable[..., Tensors], inputs: Sequence[Tensor]) -> Tensors:
        wanted = function(*inputs)
        self.known[kind] = None
        try:
            # Recorded on other numbers than it is checked with: what a recording took for a constant shows.
            recorded = _Recorded(function, [torch.zeros_like(x) for x in inputs], self.graph())
            apart = max((_apart(a, b) for a, b in zip(recorded(inputs), wanted, strict=True)), default=0.0)
        except Exception as error:
            self.say(f"no CUDA graph: {first_line(error)}")
            return wanted
        if apart > TOLERANCE:
            self.say(f"no CUDA graph: its first replay differs from a plain call by {apart:.1e} (relative RMS)")
            return wanted
        self.known[kind] = recorded
        return wanted


def _apart(got: Tensor, wanted: Tensor) -> float:
    """|got - wanted| / |wanted|; infinity where one of the two alone is finite."""
    a, b = got.double(), wanted.double()
    if not b.isfinite().all():
        return 0.0 if torch.equal(a.isfinite(), b.isfinite()) else torch.inf
    size = float(b.norm())
    found = float((a - b).norm()) / (size or 1.0)
    return found if found == found else torch.inf


@dataclass(frozen=True)
class GraphedField:
    """A velocity field without gradients. Its evaluations on dense samples are replayed, all others run plainly, as do
    those of a student that is told a guidance strength.

    Args:
        field: its weights stay where they are; equal fields share recordings.
        graphs: keeps the recordings.
    """

    field: VelocityField
    graphs: Graphed

    @torch.no_grad()
    def __call__(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        known = type(cond) is Condition and cond.strength is None and isinstance(layout, Dense)
        if cond.tokens is None or not known:
            return self.field(x, t_B, cond, layout, s_B=s_B)

        def run(x: Tensor, t_B: Tensor, tokens: Tensor, *s_B: Tensor) -> Tensors:
            one = Condition(tokens, blank=cond.blank)
            return (self.field(x, t_B, one, layout, s_B=s_B[0] if s_B else None),)

        inputs = [x, t_B, cond.tokens, *([] if s_B is None else [s_B])]
        (velocity,) = self.graphs((self.field, layout, cond.blank), run, inputs)
        return velocity.clone()  # a sampler may look at it after the next evaluation
