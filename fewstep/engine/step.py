"""The ``Step`` of a training iteration: what the core's has, and notes of what the objective did with it."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fewstep.core.objective import Step
from fewstep.engine.budget import Budget


@dataclass
class Notes:
    """What objectives asked for so far. ``reads_total`` decides whether a run may be made longer on resume."""

    reads_total: bool = False
    uses_jvp: bool = False


@dataclass
class TrainStep(Step):
    """A ``Step`` that counts evaluations under ``jvp`` and notes a look at ``total``."""

    notes: Notes = field(default_factory=Notes)
    budget: Budget = field(default_factory=Budget)

    def __getattribute__(self, name: str) -> Any:
        if name == "total":
            self.notes.reads_total = True
        return super().__getattribute__(name)

    def jvp(
        self, f: Callable[..., Tensor], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        self.notes.uses_jvp = True
        value, tangent = self.tangents(f, primals, tangents)
        self.budget.attach(value, carries_graph=self.tangents.mode == "one-pass")
        return value, tangent


def seed_torch(seed: int, step: int, rank: int) -> None:
    """Set torch's own generators (dropout) from the place in the run, as every named stream is."""
    torch.manual_seed((seed << 32) ^ zlib.crc32(f"torch/{seed}/{step}/{rank}".encode()))
