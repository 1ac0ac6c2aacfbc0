"""Methods made of others, named ``cm+dmd2``: an entry that stands for the sum of its parts. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fewstep.errors import FewstepError
from fewstep.plugins.registry import Entry

PLUS = "+"


@dataclass(frozen=True)
class Combined(Entry):
    """The sum of several registered methods."""

    parts: tuple[Entry, ...] = ()

    def load(self) -> Any:
        """The class of the sum, an ``Objective``."""
        return self._import(self.target)(self.parts)

    def load_config(self) -> Any:
        """Its config class: a table for each part, and tables of their weights and starts."""
        return self._import(str(self.config))(self.parts)


def combined(parts: Sequence[Entry]) -> Combined:
    """The entry of a sum.

    Raises:
        FewstepError: for a method that is named twice.
    """
    names = [part.name for part in parts]
    if len(set(names)) < len(names):
        raise FewstepError(f"method {PLUS.join(names)!r}: a method is named twice; accepted: each once")
    return Combined(
        kind="objective",
        name=PLUS.join(names),
        plugin=PLUS.join(dict.fromkeys(part.plugin for part in parts)),
        target="fewstep.core.compose:sum_of",
        config="fewstep.config.combined:config_of",
        summary="the sum of " + " and ".join(names),
        parts=tuple(parts),
    )
