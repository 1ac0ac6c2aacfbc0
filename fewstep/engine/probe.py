"""The choice of how to differentiate, made once for a run by a trial of the objective's losses on two samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from fewstep.core.derivatives import Tangents, choose
from fewstep.core.objective import Phase
from fewstep.errors import FewstepError

if TYPE_CHECKING:
    from fewstep.engine.trainer import Trainer

PROBED_STEPS = 32  # phases that occur among the first so many iterations are tried
SAMPLES = 2
FAILED = "forward mode failed"
UNUSED = Tangents(reason="not used by this method")


def tangents_for(trainer: Trainer, say: Callable[[str], None]) -> Tangents:
    """How this run differentiates, said aloud where it does. Called with the initial weights, so that a resumed run
    chooses alike.

    Raises:
        FewstepError: when even two samples do not fit into memory.
    """

    def probe(tangents: Tangents) -> None:
        try:
            _trial(trainer, tangents)
        except torch.OutOfMemoryError as error:
            raise FewstepError(f"out of memory with {SAMPLES} samples on {trainer.device}: {error}") from None

    chosen = choose_tangents(trainer.nets.exported("student").provides, probe)
    if chosen.mode == "finite-difference":
        probe(chosen)  # an error that has nothing to do with forward mode shows itself here
    trainer.budget.reset()
    if not trainer.notes.uses_jvp:
        return UNUSED
    say(announcement(chosen))
    return chosen


def choose_tangents(provides: frozenset[str], probe: Callable[[Tangents], object]) -> Tangents:
    """``choose``, with two passes tried before finite differences.

    Activation checkpointing and some fused ops have a forward-mode derivative only where no graph is recorded.
    """
    first = choose(provides, probe)
    if first.mode != "finite-difference" or not first.reason.startswith(FAILED):
        return first
    second = choose(provides, probe, checkpointing=True)
    if second.mode == "two-pass":
        return replace(second, reason=first.reason.replace(FAILED, "forward mode with a graph failed"))
    return first


def announcement(tangents: Tangents) -> str:
    """The line of a run's log that says how it differentiates and why."""
    if tangents.mode != "finite-difference":
        return f"derivatives: {tangents.mode} ({tangents.reason})"
    return f"warning: derivatives by finite differences, which are not exact: {tangents.reason}"


def _trial(trainer: Trainer, tangents: Tangents) -> None:
    """Loss and gradient of every phase; nothing is kept."""
    for step, phase in _phases(trainer):
        batch = trainer.batch(step)
        rows = torch.arange(min(SAMPLES, batch.layout.batch_size), device=trainer.device)
        trainer.nets.select(phase.trains)
        losses = trainer.losses(phase, batch.select(rows), trainer.at(step, tangents=tangents))
        inputs = [p for name in phase.trains for p in trainer.nets.trained[name].parameters()]
        torch.autograd.grad(torch.stack(list(losses.values())).sum(), inputs, allow_unused=True)


def _phases(trainer: Trainer) -> Iterator[tuple[int, Phase]]:
    """Each different phase with the first step that has it."""
    seen = set()
    for step in range(min(PROBED_STEPS, trainer.config.steps)):
        phase = trainer.objective.phase(step)
        if phase not in seen:
            seen.add(phase)
            yield step, phase
