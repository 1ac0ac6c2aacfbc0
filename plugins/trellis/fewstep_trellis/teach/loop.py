"""The training loop of the autoencoders: AdamW with a one-cycle schedule, resumable checkpoints, and its progress."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from rich.console import Console
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from fewstep.config.base import Strict
from fewstep.core.batching import SPREAD
from fewstep.engine.progress import RunProgress
from fewstep.engine.store import Checkpoint, Store
from fewstep.errors import FewstepError
from fewstep.files import LineFile, write_file
from fewstep.interrupts import deferred

Log = Callable[[dict[str, float]], None]
Terms = Callable[[torch.Generator], dict[str, Tensor]]
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps of a parameter
EVERY = 20  # steps from one recorded row to the next


class LoopConfig(Strict):
    """Keys that every training of an autoencoder has."""

    steps: int = Field(2000, gt=0, description="optimiser steps")
    lr: float = Field(2e-3, gt=0, le=1, description="peak learning rate (one-cycle)")
    seed: int = Field(0, description="seed of weights, order and augmentation")
    checkpoint_every: int = Field(100, gt=0, description="steps between saved states, for --resume")


class CropsConfig(LoopConfig):
    """The second stage's trainings see pieces of objects."""

    crops: int = Field(2, gt=0, description="pieces of objects per step")
    voxels: int = Field(160, gt=0, description="voxels per piece, at most")


class Loop:
    """The state of a training, in memory and in checkpoints.

    Args:
        state: folder of the checkpoints; training goes on from the newest one.
        beta2: decay of AdamW's second moment; the schedule cycles the first.

    Raises:
        FewstepError: for a damaged checkpoint, or one of another recipe.
    """

    def __init__(self, config: LoopConfig, model: nn.Module, state: Path, beta2: float = 0.98) -> None:
        self.config, self.model, self.store = config, model, Store(state, keep=1)
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimiser = torch.optim.AdamW(
            self.parameters.values(), lr=config.lr, weight_decay=0.01, betas=(0.9, beta2)
        )
        # OneCycleLR divides by the steps of the warm-up minus one: runs of ten steps or fewer get no warm-up.
        warm_up = 0.1 if config.steps > 10 else 0.95 / config.steps
        self.schedule = OneCycleLR(self.optimiser, config.lr, total_steps=config.steps, pct_start=warm_up)
        self.step, self.seconds = 0, 0.0
        found = self.store.newest()
        if found is not None:
            self._restore(found)

    def run(self, terms: Terms, weights: Mapping[str, float], log: Log) -> None:
        """Train to the end; ``terms`` draws its data from the generator it is given, seeded by seed and step."""
        started = time.monotonic() - self.seconds
        with deferred() as interrupted, self.store:
            while self.step < self.config.steps:
                self._step(terms, weights, log, started)
                stop = interrupted()
                if stop or self.step % self.config.checkpoint_every == 0:
                    self._save()
                if stop:
                    raise stop

    def _step(self, terms: Terms, weights: Mapping[str, float], log: Log, started: float) -> None:
        found = terms(torch.Generator().manual_seed((self.config.seed * SPREAD + self.step) % 2**32))
        torch.stack([weights[name] * term for name, term in found.items()]).sum().backward()
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimiser.step()
        self.schedule.step()
        self.optimiser.zero_grad()
        self.seconds = time.monotonic() - started
        shown = {name: float(term.detach()) for name, term in found.items()}
        log({"step": self.step, **shown, "norm": float(norm), "seconds": self.seconds})
        self.step += 1

    def _save(self) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for name, parameter in self.parameters.items():
            moments = self.optimiser.state[parameter]
            tensors |= {f"{key}.{name}": value for key, value in moments.items()}
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self.optimiser.param_groups]
        scalars = {"groups": groups, "schedule": self.schedule.state_dict(), "seconds": self.seconds}
        self.store.save(self.step, tensors, self._recipe(), scalars)

    def _restore(self, found: Checkpoint) -> None:
        changed = [key for key, value in self._recipe().items() if found.config.get(key) != value]
        if changed:
            lines = ", ".join(f"{key} was {found.config.get(key)}, is {self._recipe()[key]}" for key in changed)
            raise FewstepError(f"--resume with a changed recipe: {lines}; accepted: the old values, or another --out")
        tensors = found.tensors
        self.model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        for name, parameter in self.parameters.items():
            kept = {key: tensors[at] for key in MOMENTS if (at := f"{key}.{name}") in tensors}
            if kept:  # a parameter without a gradient so far has no moments; AdamW counts steps on the CPU
                on_device = {key: value.to(parameter.device) for key, value in kept.items() if key != "step"}
                self.optimiser.state[parameter] = {"step": kept["step"], **on_device}
        for group, values in zip(self.optimiser.param_groups, found.scalars["groups"], strict=True):
            group.update(values)
        self.schedule.load_state_dict(found.scalars["schedule"])
        self.step, self.seconds = found.step, float(found.scalars["seconds"])

    def _recipe(self) -> dict[str, Any]:
        return self.config.model_dump(mode="json", exclude={"checkpoint_every"})


@contextmanager
def recorded(path: Path, steps: int, console: Console) -> Iterator[Log]:
    """The log of a training: shows each row with the time left, and writes every twentieth to ``path``.

    On resuming, rows that will come again are removed from the file.
    """
    with ExitStack() as stack:
        shown: list[RunProgress] = []

        def log(row: dict[str, float]) -> None:
            step = int(row["step"])
            if not shown:
                lines = path.read_text(encoding="utf-8").splitlines(True) if path.exists() else []
                write_file(path, "".join(line for line in lines if json.loads(line)["step"] < step))
                shown.append(stack.enter_context(RunProgress(console, steps, step + 1, name=path.stem)))
            terms = {key: value for key, value in row.items() if key not in ("step", "seconds", "norm")}
            shown[0].update({"step": step + 1, "loss": terms})
            if step % EVERY == 0:
                with closing(LineFile(path)) as file:
                    file.write(json.dumps({key: round(value, 6) for key, value in row.items()}) + "\n")

        yield log
