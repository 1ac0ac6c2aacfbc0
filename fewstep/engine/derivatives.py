"""How a run differentiates: probed on two samples the first time that a phase calls ``step.jvp``."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fewstep.core.derivatives import Mode, Tangents
from fewstep.core.objective import Phase
from fewstep.errors import FewstepError, first_line

MODES: tuple[Mode, ...] = ("one-pass", "two-pass", "finite-difference")
UNUSED = Tangents(reason="not used by this method")
Trial = Callable[[Tangents], None]  # loss and gradient of a small batch; raises where this mode does not work


class Derivatives:
    """The run's choice, and the phases in which it was probed.

    Args:
        provides: the student's declared capabilities.
        say: takes a line for the user.
    """

    def __init__(self, provides: frozenset[str], say: Callable[[str], None]) -> None:
        self.say, self.probed = say, set[Phase]()
        self.wanted = Tangents(reason="the backbone provides 'jvp'")
        if "jvp" not in provides:
            self.wanted = Tangents("finite-difference", reason="the backbone does not provide 'jvp'")

    @property
    def tangents(self) -> Tangents:
        """The choice so far."""
        return self.wanted if self.probed else UNUSED

    def of(self, phase: Phase, trial: Trial) -> Tangents:
        """How to differentiate in this phase. What fails in one phase is given up for the rest of the run.

        Raises:
            FewstepError: when even two samples do not fit into memory.
        """
        if phase not in self.probed:
            try:
                found = choose_tangents(self.wanted, trial)
            except torch.OutOfMemoryError as error:
                raise FewstepError(f"out of memory while derivatives are tried on two samples: {error}") from None
            if found != self.wanted or not self.probed:
                text = f"derivatives: {found.mode} ({found.reason})"
                if found.mode == "finite-difference":
                    text = f"warning: derivatives by finite differences, which are not exact: {found.reason}"
                self.say(text)
            self.wanted = found
            self.probed.add(phase)
        return self.wanted


def choose_tangents(wanted: Tangents, trial: Trial) -> Tangents:
    """The first way that works: ``wanted``, else two passes, else finite differences.

    Activation checkpointing and some fused ops have a forward-mode derivative only where no graph is recorded: in two
    passes.

    Raises:
        Exception: what ``trial`` raises under finite differences too: it has nothing to do with forward mode.
    """
    tangents, failure = wanted, ""
    for mode in MODES[MODES.index(wanted.mode) + 1 :]:
        try:
            trial(tangents)
            return tangents
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            failure = failure or first_line(error)
        with_graph = " with a graph" if mode == "two-pass" else ""
        tangents = Tangents(mode, reason=f"forward mode{with_graph} failed: {failure}")
    trial(tangents)
    return tangents
