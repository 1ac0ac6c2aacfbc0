"""The training loop. It knows networks, phases and named loss terms, but no method and no backbone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import torch

from fewstep.engine.readback import Readback
from fewstep.engine.setup import Setup
from fewstep.errors import FewstepError
from fewstep.interrupts import deferred

Row = dict[str, Any]
AHEAD = 2  # iterations whose numbers the host need not have seen: enough to keep a GPU busy
MAX_SKIPPED = 32  # GradScaler's initial scale of 2^16 is down to 1 after half as many halvings


class NonFinite(FewstepError):
    """A loss term or gradient that is not finite."""


class Trainer(Setup):
    """The loop over the iterations of a run."""

    def train(
        self, log: Callable[[Row], None], save: Callable[[], None], draw: Callable[[int], None] = lambda step: None
    ) -> None:
        """Run to the last step. ``log`` gets a row for every iteration; ``save`` is called when a checkpoint is due,
        ``draw``, with the number of iterations done, when a sample sheet is.

        The host does not wait for a GPU: rows come up to ``AHEAD`` iterations late, but all of them before a
        checkpoint. A loss that is not finite is noticed with its row, so no checkpoint holds what followed it.

        A signal that asks the process to end takes effect after the current iteration and a checkpoint.

        Raises:
            NonFinite: naming the step and the term.
            Interrupted: on such a signal, under the command line.
        """
        with deferred() as interrupted, closing(self.reader):
            for step in range(self.step, self.config.steps):
                self._iteration(step)
                last, every = step + 1 == self.config.steps, self.config.samples_every
                due = (step + 1) % self.config.checkpoint_every == 0 or last
                shown = every > 0 and ((step + 1) % every == 0 or last)
                stop = self.processes.agreed(interrupted())
                for row in self._settled(everything=due or shown or stop is not None):
                    log(row)
                if shown:
                    draw(step + 1)
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
        loss = self.gradients.accumulate(phase, step)
        reached = [name for name in phase.trains if self.optimizers[name].has_gradient]
        norms = {name: self.optimizers[name].update(step, self.scaler) for name in reached}
        self.scaler.update()
        self.nets.averages.update(tuple(norms))
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
        """The rows whose numbers have arrived, in order; their iterations count as done. ``everything`` waits for all
        rows."""
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
        """Raise NonFinite if a loss or gradient of this iteration is not finite; ``parts`` are the loss terms of each
        process."""
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
