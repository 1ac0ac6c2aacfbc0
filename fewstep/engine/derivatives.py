"""How a run differentiates: tried on two samples the first time that a phase calls ``step.jvp``."""

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
    """The run's way to differentiate, and the phases in which it was tried.

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
        """How to differentiate in this phase. A mode that fails in one phase is not used again in this run.

        Raises:
            FewstepError: if even two samples do not fit into memory.
        """
        if phase not in self.probed:
            try:
                chosen = choose_tangents(self.wanted, trial)
            except torch.OutOfMemoryError as error:
                raise FewstepError(f"out of memory while derivatives are tried on two samples: {error}") from None
            if chosen != self.wanted or not self.probed:
                text = f"derivatives: {chosen.mode} ({chosen.reason})"
                if chosen.mode == "finite-difference":
                    text = f"warning: derivatives by finite differences, which are not exact: {chosen.reason}"
                self.say(text)
            self.wanted = chosen
            self.probed.add(phase)
        return self.wanted


def choose_tangents(wanted: Tangents, trial: Trial) -> Tangents:
    """The first way that works: ``wanted``, else two passes, else finite differences.

    Activation checkpointing and some fused ops have a forward-mode derivative only where no graph is recorded, that is
    in two passes.

    Raises:
        Exception: what ``trial`` raises even with finite differences, since forward mode is then not the cause.
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
