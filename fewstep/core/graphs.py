"""CUDA graphs: a function of tensors that is recorded once and then replayed, which costs the host one launch.

A replay reads everything but its inputs from the addresses it had when the function was recorded: weights must be
updated in place and stay on their device.
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
    """Records launches and replays them."""

    def record(self, run: Callable[[], None]) -> None:
        """Record what ``run`` launches. The memory that ``run`` allocates is kept for the replays."""

    def replay(self) -> None:
        """Launch the same again."""


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
    """A recorded function for inputs of one kind. A call copies its inputs over ``inputs``, and the replay overwrites
    ``outputs``."""

    def __init__(self, function: Callable[..., Tensors], inputs: Sequence[Tensor], graph: Graph) -> None:
        self.inputs, self.graph = inputs, graph
        self.outputs: Tensors = ()

        def run() -> None:
            self.outputs = function(*self.inputs)

        graph.record(run)

    def __call__(self, inputs: Sequence[Tensor]) -> Tensors:
        for recorded, new in zip(self.inputs, inputs, strict=True):
            recorded.copy_(new)
        self.graph.replay()
        return self.outputs


class Graphed:
    """Replays functions on inputs of a kind that was seen before; new kinds, and what cannot be recorded, run plainly.

    The first call of a kind runs plainly. The second records, and the first replay is compared with a plain call: if
    they differ, the function is never replayed and ``say`` is told why.

    Args:
        say: takes a line for the user.
        graph: makes the ``Graph`` of a kind.
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
            # Recorded on zeros and checked with the real inputs, so that a value frozen by the recording shows.
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
    """|got - wanted| / |wanted|; infinity where only one of the two is finite."""
    a, b = got.double(), wanted.double()
    if not b.isfinite().all():
        return 0.0 if torch.equal(a.isfinite(), b.isfinite()) else torch.inf
    size = float(b.norm())
    relative = float((a - b).norm()) / (size or 1.0)
    return relative if relative == relative else torch.inf


@dataclass(frozen=True)
class GraphedField:
    """A velocity field without gradients. Its evaluations on dense samples are replayed. All others run plainly, and so
    do those of a student that takes the guidance strength as an input.

    Args:
        field: its weights stay where they are; equal fields share recordings.
        graphs: keeps the recordings.
    """

    field: VelocityField
    graphs: Graphed

    @torch.no_grad()
    def __call__(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        replayable = type(cond) is Condition and cond.strength is None and isinstance(layout, Dense)
        if cond.tokens is None or not replayable:
            return self.field(x, t_B, cond, layout, s_B=s_B)

        def run(x: Tensor, t_B: Tensor, tokens: Tensor, *s_B: Tensor) -> Tensors:
            return (self.field(x, t_B, Condition(tokens, blank=cond.blank), layout, s_B=s_B[0] if s_B else None),)

        inputs = [x, t_B, cond.tokens, *([] if s_B is None else [s_B])]
        (velocity,) = self.graphs((self.field, layout, cond.blank), run, inputs)
        return velocity.clone()  # a sampler may still need it after the next evaluation
