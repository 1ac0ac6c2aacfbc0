"""The training loop. It knows networks, phases and named loss terms, and no method and no backbone."""

from __future__ import annotations

import math
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fewstep.config.parallel import ParallelConfig
from fewstep.config.train import LoRAConfig, TrainConfig
from fewstep.core.backbone import Teacher
from fewstep.core.batch import Batch
from fewstep.core.dataset import Dataset, Progress, silent
from fewstep.core.derivatives import Tangents
from fewstep.core.objective import Objective, Phase, Step, means
from fewstep.engine.budget import Budget, Counts
from fewstep.engine.derivatives import Derivatives
from fewstep.engine.device import autocast, emulates_bf16, pick_device
from fewstep.engine.graphed import graphed_gradients
from fewstep.engine.networks import Networks
from fewstep.engine.optim import NetOptimizer
from fewstep.engine.parallel import Parallel
from fewstep.engine.processes import Processes
from fewstep.engine.readback import Readback
from fewstep.engine.step import TrainStep
from fewstep.errors import FewstepError, invalid
from fewstep.interrupts import deferred

Row = dict[str, Any]
AHEAD = 2  # iterations whose numbers the host has not seen: enough to keep a GPU busy
MAX_SKIPPED = 32  # from GradScaler's first scale of 2^16, half as many halvings end below 1


class NonFinite(FewstepError):
    """A loss term or gradient that is not finite."""


class Trainer:
    """One run: its networks, optimisers and place in time.

    Args:
        objective: the method; it owns losses and phases.
        teacher: moved to the run's device here.
        dataset: gives the batch of a step.
        config: the ``train`` table.
        seed: of every draw of the run.
        say: takes lines for the user.
        lora: the ``lora`` table; by default no adapters.
        processes: those that share the work.
        parallel: the ``parallel`` table.

    Raises:
        FewstepError: for a device, precision, network, contract or EMA rate that cannot be had.
    """

    def __init__(
        self,
        objective: Objective[Any],
        teacher: Teacher,
        dataset: Dataset,
        config: TrainConfig,
        seed: int = 0,
        say: Callable[[str], None] = print,
        lora: LoRAConfig | None = None,
        processes: Processes | None = None,
        parallel: ParallelConfig | None = None,
    ) -> None:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.objective, self.dataset, self.config, self.seed, self.say = objective, dataset, config, seed, say
        self.contract = objective.contract()
        self.device = pick_device(config.device)
        self.processes = processes or Processes()
        self.micro_batches = self.processes.share(config.accumulate)
        adapted = lora is not None and lora.rank > 0
        size = 0 if adapted else sum(parameter.numel() for parameter in teacher.parameters())
        self.parallel = Parallel(parallel or ParallelConfig(), self.processes, self.device, size)
        if adapted and self.parallel.mesh is not None:
            raise invalid("parallel.kind", "fsdp", "ddp with lora.rank, since adapted networks share weights")
        self.teacher = teacher.to("cpu" if self.parallel.mesh else self.device)
        autocast(config.precision, self.device)
        if config.precision == "bf16" and emulates_bf16(self.device):
            say("warning: train.precision=bf16 is emulated by this CPU, many times slower than train.precision=fp32")
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        specs, warmup = objective.networks(), config.ema_warmup
        if adapted and config.precision == "fp32":  # what student and teacher share has one type
            self.teacher.backbone.float()
        self.nets = Networks(
            specs, self.teacher, self.device, config.ema, seed, warmup, objective.needs, lora, self.parallel
        )
        self.derivatives = Derivatives(self.nets.chosen(config.export).provides, say)
        self.optimizers = {
            name: NetOptimizer(name, parameters, self.nets.specs[name].lr_scale, config)
            for name, parameters in self.nets.parameters.items()
        }
        self.step, self.seconds, self.reads_total, self.budget = 0, 0.0, False, Budget()
        emas = [(name, ema) for (name, _), ema in self.nets.emas.items()]
        for name, module in [("teacher", teacher.backbone), *self.nets.trained.items(), *emas]:
            self.budget.watch(name, module)
        self.skipped = dict.fromkeys(self.optimizers, 0)  # updates in a row that fp16 overflow prevented
        self.graphed = graphed_gradients(self)
        self.pending = deque[tuple[Row, Readback]]()  # rows of the newest iterations, and their numbers on the way

    @property
    def evaluations(self) -> Counts:
        """What the run has cost so far, in all processes; all of them have to ask."""
        return self.processes.total(self.budget.snapshot())

    def prepare(self, progress: Progress = silent) -> None:
        """Let the data set do its slow work. What it costs counts once, whether a cache or a checkpoint has it."""
        self.teacher.to(self.device)
        counts = self.budget.snapshot()
        with self.processes.in_turn():
            self.dataset.prepare(self.device, progress)
        self.budget.reset(counts)
        if self.step == 0 and self.processes.rank == 0:
            self.budget.counts["teacher"]["forward"] += self.dataset.evaluations
        self.parallel.shard(self.teacher.backbone)  # now, because the data may have needed it in one process

    def train(self, log: Callable[[Row], None], save: Callable[[], None]) -> None:
        """Run to the last step: ``log`` gets a row every iteration, ``save`` is called whenever a checkpoint is due.

        The host does not wait for a GPU: rows come up to ``AHEAD`` iterations late, and all before a checkpoint. A loss
        that is not finite is found then too, so no checkpoint holds what followed it.

        A signal that asks the process to end is obeyed after an iteration and its checkpoint.

        Raises:
            NonFinite: naming the step and the term.
            Interrupted: on such a signal, under the command line.
        """
        with deferred() as interrupted:
            for step in range(self.step, self.config.steps):
                self._iteration(step)
                due = (step + 1) % self.config.checkpoint_every == 0 or step + 1 == self.config.steps
                stop = self.processes.agreed(interrupted())
                for row in self._settled(everything=due or stop is not None):
                    log(row)
                if due or stop:
                    save()
                if stop:
                    raise stop

    def _iteration(self, step: int) -> None:
        started = time.perf_counter()
        self.processes.step = step + 1
        phase = self.objective.phase(step)
        self.nets.copy(phase.copies)
        self.nets.select(phase.trains)
        loss = self._backward(phase, step)
        norms = {name: self._update(name, step) for name in phase.trains if self.optimizers[name].has_gradient}
        self.scaler.update()
        self.nets.update_ema(tuple(norms))
        losses = self.processes.gathered(torch.stack(list(loss.values())))
        numbers = Readback(torch.stack([*losses.flatten(), *(norm.double() for norm in norms.values())]))
        self.seconds += time.perf_counter() - started
        row = {
            "step": step + 1,
            "loss": loss,
            "grad_norm": norms,
            "lr": {name: self.optimizers[name].lr(step) for name in phase.trains},
            "seconds": self.seconds,
            "evaluations": self.evaluations,
        }
        self.pending.append((row, numbers))

    def _settled(self, everything: bool) -> Iterator[Row]:
        """The rows whose numbers have arrived, in order; they count as done. ``everything`` waits for all of them."""
        while self.pending and (everything or len(self.pending) > AHEAD or self.pending[0][1].arrived):
            row, numbers = self.pending.popleft()
            started = time.perf_counter()
            values = iter(numbers.numbers())
            self.seconds += time.perf_counter() - started
            parts = [{name: next(values) for name in row["loss"]} for _ in range(self.processes.ranks)]
            norms = {name: next(values) for name in row["grad_norm"]}
            self._check(row["step"], parts, norms)
            loss = {name: sum(part[name] for part in parts) / len(parts) for name in row["loss"]}
            self.step = row["step"]
            shown = {name: norm if math.isfinite(norm) else None for name, norm in norms.items()}
            yield row | {
                "loss": loss,
                "total": sum(loss.values()),
                "grad_norm": shown,
                "seconds": round(row["seconds"], 3),
            }

    def _check(self, step: int, parts: list[dict[str, float]], norms: dict[str, float]) -> None:
        """Raise NonFinite where this iteration was no good; ``parts`` are the loss terms of each process."""
        for rank, loss in enumerate(parts):
            for name, value in loss.items():
                if not math.isfinite(value):
                    where = f", rank {rank}" if len(parts) > 1 else ""
                    raise NonFinite(f"step {step}{where}: loss term {name!r} is {value}")
        for name, norm in norms.items():
            # Under fp16 an overflow skips the update and lowers the loss scale; elsewhere it is an error at once.
            self.skipped[name] = 0 if math.isfinite(norm) else self.skipped[name] + 1
            if not math.isfinite(norm) and not self.scaler.is_enabled():
                raise NonFinite(f"step {step}: the gradient of network {name!r} has norm {norm}")
            if self.skipped[name] > MAX_SKIPPED:
                raise NonFinite(
                    f"step {step}: {self.skipped[name]} updates of network {name!r} in a row had a gradient that is "
                    f"not finite, and fp16's loss scale has fallen to {self.scaler.get_scale():.1e}; accepted: "
                    "train.precision=bf16 or fp32, or a lower train.lr"
                )

    def batch(self, step: int, micro: int = 0) -> Batch:
        """Micro-batches are drawn as ranks are: one iteration of a x b samples sees what one of ab samples sees."""
        batch = self.dataset.training_batch(
            step, self.config.batch_size, self.seed, rank=micro, ranks=self.config.accumulate
        )
        for note in self.dataset.notes():
            self.say(note)
        return batch

    def seed_torch(self, step: TrainStep) -> None:
        """torch's own generators serve dropout; they too follow from the place in the run."""
        index, rank = step.place
        torch.manual_seed((self.seed << 32) ^ zlib.crc32(f"torch/{self.seed}/{index}/{rank}".encode()))

    def terms(self, phase: Phase, batch: Batch, step: Step) -> dict[str, Tensor]:
        """The phase's named loss terms on a batch of the run's device, under the run's precision."""
        with autocast(self.config.precision, self.device):
            terms: dict[str, Tensor] = getattr(self.objective, phase.loss)(batch, self.nets.view, step)
        if not terms:
            raise FewstepError(
                f"{type(self.objective).__name__} has no loss term under this config: are all weights 0?"
            )
        return terms

    def tangents_at(self, phase: Phase, index: int, rank: int = 0) -> Tangents:
        """How to differentiate in this phase. The first call in a phase probes it on two samples of this step."""

        def trial(tangents: Tangents) -> None:
            batch = self.batch(index, rank)
            rows = torch.arange(min(2, batch.layout.batch_size))
            small = batch.select(rows).to(self.device)
            parameters = [p for name in phase.trains for p in self.nets.parameters[name].values()]
            gradients = [p.grad for p in parameters]
            for parameter in parameters:
                parameter.grad = None
            try:
                with torch.enable_grad(), torch.random.fork_rng():
                    step = TrainStep(self, phase, index, rank, tangents)
                    self.seed_torch(step)
                    terms = means(self.terms(phase, small, step))
                    torch.stack(list(terms.values())).sum().backward()  # FSDP2 knows no ``torch.autograd.grad``
            finally:
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient

        counts = self.budget.snapshot()
        found = self.derivatives.of(phase, trial)
        self.budget.reset(counts)
        return found

    def _backward(self, phase: Phase, step: int) -> dict[str, Tensor]:
        """Accumulate the gradient of the iteration; its mean loss terms, on the device."""
        loss: dict[str, Tensor] = {}
        batches = [self.batch(step, micro) for micro in self.micro_batches]
        own = [sum(b.layout.batch_size for b in batches), sum(len(b.x0) for b in batches)]
        samples, rows = self.processes.summed(own)
        for micro, batch in zip(self.micro_batches, batches, strict=True):
            gradients = self.graphed or self.gradients
            step_of = TrainStep(self, phase, step, micro)
            for name, value in gradients(phase, batch.to(self.device), step_of, samples, rows).items():
                loss[name] = value + loss.get(name, 0.0)
        self.parallel.average(p for name in phase.trains for p in self.nets.parameters[name].values())
        return loss

    def gradients(self, phase: Phase, batch: Batch, step: TrainStep, samples: int, rows: int) -> dict[str, Tensor]:
        """Add a micro-batch's part of the gradient; its parts of the loss terms, in float64."""
        self.seed_torch(step)
        weighted = self.weighted(phase, batch, step, samples, rows)
        self.scaler.scale(torch.stack(list(weighted.values())).sum()).backward()
        return {name: value.detach().double() for name, value in weighted.items()}

    def weighted(self, phase: Phase, batch: Batch, step: Step, samples: int, rows: int) -> dict[str, Tensor]:
        """A micro-batch's parts of the iteration's mean loss terms; ``samples`` and ``rows`` are the iteration's.

        They are as many times larger as there are processes, over which losses and gradients are averaged.
        """
        terms, ranks = self.terms(phase, batch, step), self.processes.ranks
        shares = {name: ranks * share_of(name, term, batch, samples, rows) for name, term in terms.items()}
        return {name: mean * shares[name] for name, mean in means(terms).items()}

    def _update(self, name: str, step: int) -> Tensor:
        """Clip and apply one network's gradients; their norm before clipping, on the device."""
        optimizer = self.optimizers[name]
        optimizer.set_lr(step)
        self.scaler.unscale_(optimizer.adam)
        norm = optimizer.clip()
        self.scaler.step(optimizer.adam)
        optimizer.adam.zero_grad(set_to_none=True)
        return norm


def share_of(name: str, term: Tensor, batch: Batch, samples: int, rows: int) -> float:
    """The weight of a loss term's mean over one micro-batch in the mean over the iteration.

    Args:
        name: of the term.
        term: as the loss returned it: a value a sample, a value an element, or a scalar.
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
        f"loss term {name!r} has shape {list(term.shape)} and cannot be weighed among micro-batches of unequal size "
        f"(this one has {own_samples} samples of {own_rows} rows). Return error without .mean(), so that every element "
        "counts alike, or batch.layout.mean(error), so that every sample counts alike; or set train.accumulate=1"
    )
