"""The training loop of the structured-latent decoders: one cycle of AdamW, with a state to go on from."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from fewstep.config.base import Strict
from fewstep.engine.networks import SPREAD

Log = Callable[[dict[str, float]], None]
Terms = Callable[[torch.Generator], dict[str, Tensor]]


class LoopConfig(Strict):
    """Keys that both trainings of the second stage's VAE have."""

    steps: int = Field(2000, gt=0, description="optimiser steps")
    crops: int = Field(2, gt=0, description="pieces of objects a step")
    voxels: int = Field(160, gt=0, description="voxels a piece, at most")
    lr: float = Field(2e-3, gt=0, description="peak learning rate (one-cycle)")
    seed: int = Field(0, description="seed of weights, order and augmentation")
    checkpoint_every: int = Field(100, gt=0, description="steps between saved states, for --resume")


@dataclass
class Loop:
    """What changes from step to step, kept in ``state``."""

    config: LoopConfig
    model: nn.Module
    state: Path

    def __post_init__(self) -> None:
        config = self.config
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=config.lr, weight_decay=0.01, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.OneCycleLR
        self.schedule = schedule(self.optimiser, config.lr, total_steps=config.steps, pct_start=0.1)
        self.step, self.seconds = 0, 0.0
        if self.state.exists():
            self._restore()

    def run(self, terms: Terms, weights: Mapping[str, float], log: Log) -> None:
        """Train to the end; ``terms`` draws its data from the generator it is given, a function of seed and step."""
        started = time.monotonic() - self.seconds
        while self.step < self.config.steps:
            found = terms(torch.Generator().manual_seed((self.config.seed * SPREAD + self.step) % 2**32))
            torch.stack([weights[name] * term for name, term in found.items()]).sum().backward()
            norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimiser.step()
            self.schedule.step()
            self.optimiser.zero_grad()
            self.seconds = time.monotonic() - started
            shown = {name: float(term.detach()) for name, term in found.items()}
            log({"step": self.step, **shown, "norm": float(norm), "seconds": self.seconds})
            self.step += 1
            if self.step % self.config.checkpoint_every == 0:
                self._keep()

    def _keep(self) -> None:
        part = self.state.with_suffix(".part")
        kept: dict[str, Any] = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}
        kept |= {"schedule": self.schedule.state_dict(), "step": self.step, "seconds": self.seconds}
        torch.save(kept, part)
        os.replace(part, self.state)

    def _restore(self) -> None:
        kept: dict[str, Any] = torch.load(self.state, weights_only=True)
        self.model.load_state_dict(kept["model"])
        self.optimiser.load_state_dict(kept["optimiser"])
        self.schedule.load_state_dict(kept["schedule"])
        self.step, self.seconds = int(kept["step"]), float(kept["seconds"])


def curve(path: Path, log: Log) -> Log:
    """Every twentieth row to ``path`` and to ``log``."""

    def both(row: dict[str, float]) -> None:
        if row["step"] % 20 == 0:
            log(row)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({key: round(value, 6) for key, value in row.items()}) + "\n")

    return both
