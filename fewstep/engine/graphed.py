"""Loss and gradient of a micro-batch as a CUDA graph: ``train.graphs``.

A graph repeats what it recorded, so whatever changes from one iteration to the next must be an input tensor: the batch,
the random draws, the loss scale. The first pass of a kind runs plainly and notes the draws. An objective that reads the
iteration's number, or draws by other means, is not recorded, and the run says so. If it decides by the number
(``Step.decide``) or by ``Step.choice``, each outcome has a recording of its own. Clipping, the optimiser and the EMAs
stay outside: they take a few launches for all parameters together, and each recording and check would repeat their
updates.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fewstep.core.batch import Batch, Condition
from fewstep.core.graphs import CudaGraph, Graph, Graphed
from fewstep.core.layout import Dense
from fewstep.core.objective import Phase, Step
from fewstep.engine.budget import Counts
from fewstep.engine.step import Given, Noting, TrainStep

if TYPE_CHECKING:
    from fewstep.engine.setup import Setup


@dataclass
class Plan:
    """One kind of micro-batch, as observed in its first pass.

    Args:
        draws: functions that make each draw for a step.
        holds: for each decision, whether a step makes it as the first pass did.
        refused: why it is not recorded; "" if it is.
        cost: evaluations of one pass. A replay calls no network that could count them.
        terms: names of the loss terms.
        reached: parameters with a gradient.
    """

    draws: list[Callable[[Step], Tensor]]
    holds: list[Callable[[Step], bool]]
    refused: str
    cost: Counts
    terms: tuple[str, ...]
    reached: list[nn.Parameter] = field(default_factory=list)


class GraphedGradients:
    """``Gradients.plain`` by CUDA graphs, with the same arguments and results.

    Args:
        graph: makes what records and replays.
    """

    def __init__(self, run: Setup, graph: Callable[[], Graph] = CudaGraph) -> None:
        self.run, self.graphs = run, Graphed(run.say, graph)
        self.plans: dict[Hashable, list[Plan]] = {}

    def __call__(self, phase: Phase, batch: Batch, step: TrainStep, samples: int, rows: int) -> dict[str, Tensor]:
        key = (samples, rows, phase, *kind_of(batch))
        known = self.plans.setdefault(key, [])
        for number, plan in enumerate(known):
            if plan.refused:
                return self.run.gradients.plain(phase, batch, step, samples, rows)
            if all(holds(step) for holds in plan.holds):
                return self._replayed(plan, (number, *key), batch, step)
        loss, plan = self._noted(batch, Noting(self.run, phase, *step.place), samples, rows)
        known.append(plan)
        return loss

    def _noted(self, batch: Batch, noting: Noting, samples: int, rows: int) -> tuple[dict[str, Tensor], Plan]:
        before = self.run.budget.snapshot()
        loss = self.run.gradients.plain(noting.phase, batch, noting, samples, rows)
        after = self.run.budget.snapshot()
        cost = {name: {kind: after[name][kind] - n for kind, n in kinds.items()} for name, kinds in before.items()}
        refused = unfit(batch) or noting.refused
        if refused and all(plan.refused != refused for plans in self.plans.values() for plan in plans):
            self.run.say(f"no CUDA graph: {refused}")
        return loss, Plan(noting.draws, noting.holds, refused, cost, tuple(loss))

    def _replayed(self, plan: Plan, key: tuple[Any, ...], batch: Batch, step: TrainStep) -> dict[str, Tensor]:
        run, phase, of_batch = self.run, step.phase, list[Tensor]()
        _, samples, rows, *_ = key

        def take(x: Tensor) -> Tensor:
            of_batch.append(x)
            return x

        batch.mapped(take)
        scale = run.scaler.scale(torch.ones((), device=run.device))
        parameters = [p for name in phase.trains for p in run.nets.parameters[name].values()]

        def gradients_of(scale: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
            tensors = iter(inputs)
            inner = batch.mapped(lambda _: next(tensors))
            weighted = run.gradients.weighted(phase, inner, Given(step, inputs[len(of_batch) :]), samples, rows)
            before = [p.grad for p in parameters]
            for parameter in parameters:
                parameter.grad = None  # so that the backward pass writes a new gradient and does not add to one
            (torch.stack(list(weighted.values())).sum() * scale).backward()
            plan.reached = [p for p in parameters if p.grad is not None]
            gradients = [p.grad for p in plan.reached if p.grad is not None]
            for parameter, earlier in zip(parameters, before, strict=True):
                parameter.grad = earlier
            return (torch.stack([value.detach().double() for value in weighted.values()]), *gradients)

        run.gradients.seed_torch(step)
        counts = run.budget.snapshot()
        values, *gradients = self.graphs(key, gradients_of, [scale, *of_batch, *(draw(step) for draw in plan.draws)])
        run.budget.reset(counts)
        run.budget.add(plan.cost)
        alone = run.config.accumulate == 1
        for parameter, gradient in zip(plan.reached, gradients, strict=True):
            if parameter.grad is None:  # the next replay overwrites it, so it is kept only if this is the only one
                parameter.grad = gradient if alone else gradient.clone()
            else:
                parameter.grad += gradient
        return dict(zip(plan.terms, values.clone().unbind(), strict=True))


def graphed_gradients(run: Setup) -> GraphedGradients | None:
    """``GraphedGradients`` if ``train.graphs`` asks for them and the run can use them, else None."""
    if run.config.graphs and run.device.type != "cuda":
        run.say(f"train.graphs has no effect on {run.device.type}")
    if run.config.graphs and run.parallel.mesh is not None:
        run.say("no CUDA graph: the networks are sharded")
        return None
    return GraphedGradients(run) if run.config.graphs and run.device.type == "cuda" else None


def unfit(batch: Batch) -> str:
    """Why batches of this kind are not recorded; "" if they are."""
    if not isinstance(batch.layout, Dense):
        return "the samples are ragged, so that shapes do not repeat"
    if type(batch) is not Batch or type(batch.cond) is not Condition:
        return "the data set's batches are of a class of their own"
    return ""


def kind_of(batch: Batch) -> tuple[Any, ...]:
    """What distinguishes batches besides the shapes of tensors."""
    if unfit(batch):
        return (type(batch), type(batch.layout), type(batch.cond))
    cond = batch.cond
    return (batch.layout, batch.x0.shape, cond.blank, cond.tokens is None, cond.negative_tokens is None)
