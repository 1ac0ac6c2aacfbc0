"""What a name in the registry stands for: something that a plugin registered, or a sum of methods, ``cm+dmd2``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from fewstep.errors import FewstepError, missing

PLUS = "+"


@dataclass(frozen=True)
class Entry:
    """One registered item. ``target`` and ``config`` are "package.module:Name", imported on first use."""

    kind: str
    name: str
    plugin: str
    target: str
    config: str | None = None
    summary: str = ""
    aliases: tuple[str, ...] = ()
    distribution: str = ""

    @property
    def owner(self) -> str:
        """The plugin and the distribution that brought it."""
        return f"{self.plugin!r}" + (f" (distribution {self.distribution!r})" if self.distribution else "")

    def load(self) -> Any:
        """The target.

        Raises:
            FewstepError: if it cannot be imported, naming the plugin.
        """
        return self._import(self.target)

    def load_config(self) -> Any:
        """The config class: the one registered, or the target's ``Config``; for a backbone with the key ``teacher``."""
        own = self._import(self.config) if self.config else self.load().Config
        return _with_teacher(own) if self.kind == "backbone" else own

    def _import(self, path: str) -> Any:
        module, _, attribute = path.partition(":")
        try:
            with redirect_stdout(sys.stderr):  # standard output is a command's own, which may be JSON
                return getattr(importlib.import_module(module), attribute)
        except (Exception, SystemExit) as error:
            if isinstance(error, ImportError) and (sentence := missing(error)):
                raise sentence from error
            raise FewstepError(
                f"{word(self.kind)} {self.name!r} of plugin {self.owner} cannot be loaded from {path!r}: "
                f"{type(error).__name__}: {error}"
            ) from error


@lru_cache
def _with_teacher(own: Any) -> Any:
    """The config class of a backbone or, if it has no key ``teacher``, a class derived from it that does."""
    if "teacher" in own.model_fields:
        return own
    from pydantic import Field, create_model

    text = "a run of `fewstep teach` whose network is the teacher; none: the backbone's own teacher"
    field = Field(None, description=text)
    return create_model(own.__name__, __base__=own, __doc__=own.__doc__, teacher=(Path | None, field))


@dataclass(frozen=True)
class Combined(Entry):
    """The sum of several registered methods; ``target`` has their names, ``cm+dmd2``, and ``find`` an entry by name."""

    find: Callable[[str], Entry] = field(kw_only=True, compare=False, repr=False)

    @cached_property
    def parts(self) -> tuple[Entry, ...]:
        """The methods, looked up on first use, since plugins that load later may register them.

        Raises:
            FewstepError: for a method that is not registered, or named twice.
        """
        parts = tuple(self.find(name) for name in self.target.split(PLUS))
        names = [part.name for part in parts]
        if len(set(names)) < len(names):
            raise FewstepError(f"method {self.name!r}: a method is named twice; accepted: each once")
        return parts

    def load(self) -> Any:
        """The class of the sum, an ``Objective``."""
        return self._import("fewstep.core.compose:sum_of")(self.parts)

    def load_config(self) -> Any:
        """Its config class: a table for each part, and tables of their weights and starts."""
        return self._import("fewstep.config.combined:config_of")(self.parts)


def combined(names: str, find: Callable[[str], Entry]) -> Combined:
    """The entry of a sum that no plugin registered, ``cm+dmd2``. Raises FewstepError as its ``parts`` do."""
    parts = Combined("objective", names, "", names, find=find).parts
    name = PLUS.join(part.name for part in parts)
    plugin = PLUS.join(dict.fromkeys(part.plugin for part in parts))
    return Combined("objective", name, plugin, name, summary=f"the sum of {name.replace(PLUS, ' and ')}", find=find)


def word(kind: str) -> str:
    """The word that users know for a kind."""
    return "method" if kind == "objective" else kind
