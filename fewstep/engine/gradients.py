"""The gradient of an iteration: loss terms under the run's precision, and their sum over micro-batches."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewstep.core.batch import Batch
from fewstep.core.derivatives import Tangents, forked_rng
from fewstep.core.objective import Phase, Step, means
from fewstep.engine.device import autocast
from fewstep.engine.graphed import graphed_gradients
from fewstep.engine.step import TrainStep
from fewstep.errors import FewstepError

if TYPE_CHECKING:
    from fewstep.engine.setup import Setup


class Gradients:
    """Loss terms and gradients of a run's networks."""

    def __init__(self, run: Setup) -> None:
        self.run, self.graphed = run, graphed_gradients(run)

    def accumulate(self, phase: Phase, step: int) -> dict[str, Tensor]:
        """Accumulate the gradient of the iteration; returns its mean loss terms, on the device."""
        loss: dict[str, Tensor] = {}
        batches = self.run.reader.iteration(step)
        own = [sum(b.layout.batch_size for b in batches), sum(len(b.x0) for b in batches)]
        samples, rows = self.run.processes.summed(own)
        for micro, batch in zip(self.run.micro_batches, batches, strict=True):
            place = TrainStep(self.run, phase, step, micro)
            add = self.graphed or self.plain
            for name, value in add(phase, batch.to(self.run.device), place, samples, rows).items():
                loss[name] = value + loss.get(name, 0.0)
        self.run.parallel.average(p for name in phase.trains for p in self.run.nets.parameters[name].values())
        return loss

    def plain(self, phase: Phase, batch: Batch, step: TrainStep, samples: int, rows: int) -> dict[str, Tensor]:
        """Add a micro-batch's part of the gradient; returns its parts of the loss terms, in float64."""
        self.seed_torch(step)
        weighted = self.weighted(phase, batch, step, samples, rows)
        self.run.scaler.scale(torch.stack(list(weighted.values())).sum()).backward()
        return {name: value.detach().double() for name, value in weighted.items()}

    def weighted(self, phase: Phase, batch: Batch, step: Step, samples: int, rows: int) -> dict[str, Tensor]:
        """A micro-batch's parts of the iteration's mean loss terms; ``samples`` and ``rows`` are the iteration's.

        They are multiplied by the number of processes, over which losses and gradients are averaged afterwards.
        """
        terms, ranks = self.terms(phase, batch, step), self.run.processes.ranks
        shares = {name: ranks * share_of(name, term, batch, samples, rows) for name, term in terms.items()}
        return {name: mean * shares[name] for name, mean in means(terms).items()}

    def seed_torch(self, step: TrainStep) -> None:
        """Seed torch's global generators, which dropout draws from, by the place in the run."""
        index, rank = step.place
        torch.manual_seed((self.run.seed << 32) ^ zlib.crc32(f"torch/{self.run.seed}/{index}/{rank}".encode()))

    def terms(self, phase: Phase, batch: Batch, step: Step) -> dict[str, Tensor]:
        """The phase's named loss terms on a batch of the run's device, under the run's precision."""
        with autocast(self.run.config.precision, self.run.device):
            terms: dict[str, Tensor] = getattr(self.run.objective, phase.loss)(batch, self.run.nets.view, step)
        if not terms:
            raise FewstepError(
                f"{type(self.run.objective).__name__} has no loss term under this config: are all weights 0?"
            )
        return terms

    def tangents_at(self, phase: Phase, index: int, rank: int = 0) -> Tangents:
        """How to differentiate in this phase. The first call in a phase tries it on two samples of this step."""

        def trial(tangents: Tangents) -> None:
            batch = self.run.reader.batch(index, rank)
            rows = torch.arange(min(2, batch.layout.batch_size))
            small = batch.select(rows).to(self.run.device)
            parameters = [p for name in phase.trains for p in self.run.nets.parameters[name].values()]
            gradients = [p.grad for p in parameters]
            for parameter in parameters:
                parameter.grad = None
            try:
                with torch.enable_grad(), forked_rng(self.run.device):
                    step = TrainStep(self.run, phase, index, rank, tangents)
                    self.seed_torch(step)
                    terms = means(self.terms(phase, small, step))
                    torch.stack(list(terms.values())).sum().backward()  # FSDP2 does not support torch.autograd.grad
            finally:
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient

        counts = self.run.budget.snapshot()
        tangents = self.run.derivatives.of(phase, trial)
        self.run.budget.reset(counts)
        return tangents


def share_of(name: str, term: Tensor, batch: Batch, samples: int, rows: int) -> float:
    """The weight of a loss term's mean over one micro-batch in the mean over the iteration.

    Args:
        name: of the term.
        term: as the loss returned it: one value per sample, one per element, or a scalar.
        samples, rows: of the whole iteration; rows are the length of x0.

    Raises:
        FewstepError: for a scalar whose weight is ambiguous, or another shape.
    """
    own_samples, own_rows = batch.layout.batch_size, len(batch.x0)
    if own_samples * rows == own_rows * samples or (term.dim() == 1 and len(term) == own_samples):
        return own_samples / samples
    if term.dim() > 0 and len(term) == own_rows:
        return own_rows / rows
    raise FewstepError(
        f"loss term {name!r} has shape {list(term.shape)} and cannot be weighted over micro-batches of unequal size "
        f"(this one has {own_samples} samples with {own_rows} rows). Return the error without .mean(), so that every "
        "element counts equally, or batch.layout.mean(error), so that every sample does; or set train.accumulate=1"
    )
