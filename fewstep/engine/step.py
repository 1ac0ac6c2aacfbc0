"""The ``Step`` of one micro-batch in training, and two variants that make its draws the inputs of a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from fewstep.core.derivatives import Function, Tangents, Tensors
from fewstep.core.layout import Layout
from fewstep.core.objective import Phase, Step
from fewstep.core.times import TimeSampler

if TYPE_CHECKING:
    from fewstep.engine.setup import Setup

T = TypeVar("T")


class TrainStep(Step):
    """The ``Step`` of one micro-batch. It counts evaluations under ``jvp`` and notes a read of ``total``."""

    def __init__(self, run: Setup, phase: Phase, index: int, rank: int, tangents: Tangents | None = None) -> None:
        super().__init__(
            index=index,
            interpolant=run.teacher.interpolant,
            seed=run.seed,
            rank=rank,
            total=run.config.steps,
            tangents=tangents or run.derivatives.tangents,
            device=run.device,
            edges=run.teacher.guidance.edges,
        )
        self.run, self.phase, self.given = run, phase, tangents

    @property
    def place(self) -> tuple[int, int]:
        """Iteration and micro-batch, for the engine."""
        return self._index, self.rank

    @property
    def total(self) -> int:
        self.run.reads_total = True
        return super().total

    def jvp(
        self, f: Function, primals: Tensors, tangents: Tensors, layout: Layout | None = None
    ) -> tuple[Tensor, Tensor]:
        self.tangents = self.given or self.run.gradients.tangents_at(self.phase, *self.place)
        value, tangent = super().jvp(f, primals, tangents, layout)
        self.run.budget.attach(value, carries_graph=self.tangents.mode == "one-pass")
        return value, tangent


class Noting(TrainStep):
    """Notes how another step can repeat each draw, and which decisions do not depend on tensors.

    Attributes:
        draws: functions that make each draw for another step, in order.
        holds: for each decision, whether another step makes the same one.
        refused: why a graph cannot replace this step: it read a value that changes each iteration and is not a tensor.
    """

    def __init__(self, run: Setup, phase: Phase, index: int, rank: int) -> None:
        super().__init__(run, phase, index, rank)
        self.draws: list[Callable[[Step], Tensor]] = []
        self.holds: list[Callable[[Step], bool]] = []
        self.refused = ""

    @property
    def index(self) -> int:
        self.refused = self.refused or "the objective looks at the number of the iteration"
        return self._index

    def decide(self, rule: Callable[[int], T]) -> T:
        decision = super().decide(rule)
        self.holds.append(lambda step: step.decide(rule) == decision)
        return decision

    def choice(self, values: tuple[float, ...], name: str) -> float:
        chosen = super().choice(values, name)
        self.holds.append(lambda step: step.choice(values, name) == chosen)
        return chosen

    def stream(self, name: str) -> torch.Generator:
        self.refused = self.refused or "the objective draws from a generator of its own"
        return super().stream(name)

    def randn_like(self, x: Tensor, name: str | None = None) -> Tensor:
        shape, dtype, device = x.shape, x.dtype, x.device
        self.draws.append(lambda step: step.randn_like(torch.empty(shape, dtype=dtype, device=device), name))
        return super().randn_like(x, name)

    def times(self, layout: Layout, sampler: TimeSampler, name: str = "t") -> Tensor:
        self.draws.append(lambda step: step.times(layout, sampler, name))
        return super().times(layout, sampler, name)


class Given(TrainStep):
    """Returns draws that were made before, in the same order."""

    def __init__(self, like: TrainStep, draws: Sequence[Tensor]) -> None:
        super().__init__(like.run, like.phase, *like.place, like.run.derivatives.tangents)
        self._draws = iter(draws)

    def randn_like(self, x: Tensor, name: str | None = None) -> Tensor:
        return next(self._draws)

    def times(self, layout: Layout, sampler: TimeSampler, name: str = "t") -> Tensor:
        return next(self._draws)
