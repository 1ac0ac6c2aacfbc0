"""The training loop. It knows networks, phases and named loss terms, and no method and no backbone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fewstep.config.train import TrainConfig
from fewstep.core.backbone import Teacher
from fewstep.core.batch import Batch
from fewstep.core.dataset import Dataset
from fewstep.core.derivatives import Tangents
from fewstep.core.objective import Objective, Phase
from fewstep.engine.budget import Budget
from fewstep.engine.device import autocast, pick_device, to_device
from fewstep.engine.networks import Networks
from fewstep.engine.optim import NetOptimizer
from fewstep.engine.passes import Pass, Terms, common_factor, mean_terms, size_of
from fewstep.engine.probe import tangents_for
from fewstep.engine.step import Notes, TrainStep, seed_torch
from fewstep.errors import FewstepError

Row = dict[str, Any]


class NonFinite(FewstepError):
    """A loss term or gradient that is no number."""


class Trainer:
    """One run: its networks, optimisers and place in time.

    Args:
        objective: the method; it owns losses and phases.
        teacher: moved to the run's device here.
        dataset: hands out the batch of a step.
        config: the ``train`` table.
        seed: of every draw of the run.
        say: takes lines for the user.

    Raises:
        FewstepError: for a device, precision, network or export rate that cannot be had.
    """

    def __init__(
        self,
        objective: Objective[Any],
        teacher: Teacher,
        dataset: Dataset,
        config: TrainConfig,
        seed: int = 0,
        say: Callable[[str], None] = print,
    ) -> None:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.objective, self.dataset, self.config, self.seed, self.say = objective, dataset, config, seed, say
        self.device = pick_device(config.device)
        self.teacher = teacher.to(self.device)
        self.autocast = autocast(config.precision, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.nets = Networks(objective.networks(), self.teacher, self.device, config.ema, seed)
        self.nets.exported(config.export)
        self.optimizers = {
            name: NetOptimizer(name, module, self.nets.specs[name].lr_scale, config)
            for name, module in self.nets.trained.items()
        }
        self.step, self.seconds, self.notes, self.budget = 0, 0.0, Notes(), self._watched()
        self.tangents = tangents_for(self, say)

    def train(self, log: Callable[[Row], None], save: Callable[[], None]) -> None:
        """Run to the last step: ``log`` gets a row every iteration, ``save`` is called whenever a checkpoint is due.

        Raises:
            NonFinite: naming the step and the term.
        """
        for step in range(self.step, self.config.steps):
            started = time.perf_counter()
            phase = self.objective.phase(step)
            self.nets.select(phase.trains)
            passes: list[Pass] = []
            for micro in range(self.config.accumulate):
                passes.append(self._backward(phase, step, micro, passes[0].size if passes else None))
            norms = {name: self._update(name, step, common_factor(passes)) for name in phase.trains}
            self.scaler.update()
            self.nets.average(phase.trains)
            self.step, self.seconds = step + 1, self.seconds + time.perf_counter() - started
            log(self._row(phase, passes, norms, step))
            if self.step % self.config.checkpoint_every == 0 or self.step == self.config.steps:
                save()

    def batch(self, step: int, micro: int = 0) -> Batch:
        """Micro-batches are drawn as ranks are: one iteration of a x b samples sees what one of ab samples sees."""
        batch = self.dataset.training_batch(
            step, self.config.batch_size, self.seed, rank=micro, ranks=self.config.accumulate
        )
        for note in self.dataset.notes():
            self.say(note)
        return to_device(batch, self.device)

    def at(self, step: int, micro: int = 0, tangents: Tangents | None = None) -> TrainStep:
        """The randomness and derivatives of one micro-batch."""
        return TrainStep(
            index=step,
            interpolant=self.teacher.interpolant,
            seed=self.seed,
            rank=micro,
            total=self.config.steps,
            tangents=tangents or self.tangents,
            device=self.device,
            notes=self.notes,
            budget=self.budget,
        )

    def losses(self, phase: Phase, batch: Batch, step: TrainStep) -> dict[str, Tensor]:
        """The phase's named loss terms, under the run's precision."""
        seed_torch(self.seed, step.index, step.rank)
        with self.autocast:
            terms: dict[str, Tensor] = getattr(self.objective, phase.loss)(batch, self.nets.view, step)
        if not terms:
            raise FewstepError(
                f"{type(self.objective).__name__} has no loss term under this config: are all weights 0?"
            )
        return terms

    def _backward(self, phase: Phase, step: int, micro: int, first: int | None = None) -> Pass:
        """The gradient of one pass, weighed against the iteration's first, whose size is ``first``."""
        batch = self.batch(step, micro)
        size = size_of(batch, self.objective)
        losses = self.losses(phase, batch, self.at(step, micro))
        values = torch.stack([loss.detach().double() for loss in losses.values()]).tolist()
        for name, value in zip(losses, values, strict=True):
            if not math.isfinite(value):
                raise NonFinite(f"step {step + 1}: loss term {name!r} is {value}")
        total = torch.stack(list(losses.values())).sum() / self.config.accumulate
        self.scaler.scale(total * (size / (first or size))).backward()
        return Pass(dict(zip(losses, values, strict=True)), size)

    def _update(self, name: str, step: int, factor: float = 1.0) -> float:
        """Clip and apply one network's gradients times ``factor``; their norm before clipping."""
        optimizer = self.optimizers[name]
        optimizer.set_lr(step)
        self.scaler.unscale_(optimizer.adam)
        optimizer.scale_gradients(factor)
        norm = optimizer.clip()
        if not math.isfinite(norm) and not self.scaler.is_enabled():
            raise NonFinite(f"step {step + 1}: the gradient of network {name!r} has norm {norm}")
        self.scaler.step(optimizer.adam)
        optimizer.adam.zero_grad(set_to_none=True)
        return norm

    def _row(self, phase: Phase, passes: list[Pass], norms: Terms, step: int) -> Row:
        loss = mean_terms(passes)
        return {
            "step": step + 1,
            "loss": loss,
            "total": sum(loss.values()),
            "grad_norm": {name: norm if math.isfinite(norm) else None for name, norm in norms.items()},
            "lr": {name: self.optimizers[name].lr(step) for name in phase.trains},
            "seconds": round(self.seconds, 3),
            "evaluations": self.budget.snapshot(),
        }

    def _watched(self) -> Budget:
        budget = Budget()
        budget.watch("teacher", self.teacher.backbone)
        for name, module in self.nets.trained.items():
            budget.watch(name, module)
        for (name, _), module in self.nets.averages.items():
            budget.watch(name, module)
        return budget
