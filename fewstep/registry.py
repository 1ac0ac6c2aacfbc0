"""What is installed: entries by kind and name, clashes and broken plugins.

A broken plugin is reported and never fatal; a name that two plugins claim is an error for whoever asks for that name,
and nothing else is affected. Finding plugins imports no torch.
"""

from __future__ import annotations

import importlib
from collections import defaultdict
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib import metadata
from typing import Any

import pluggy

from fewstep import hookspecs
from fewstep.errors import FewstepError, unknown

KINDS = ("objective", "backbone", "dataset", "sampler", "metric", "kernel", "tracker")
BUILTIN = {
    "euler": "first order along the velocity",
    "heun": "second order, two evaluations a step",
    "consistency": "jump to the data, put fresh noise on it",
    "jump": "two-time jump F(x, t, s)",
}


@dataclass(frozen=True)
class Entry:
    """One registered thing. ``target`` and ``config`` are "package.module:Name" and load on use."""

    kind: str
    name: str
    plugin: str
    target: str
    config: str | None = None
    summary: str = ""
    aliases: tuple[str, ...] = ()

    def load(self) -> Any:
        """The target.

        Raises:
            FewstepError: when it cannot be imported, naming the plugin.
        """
        return self._import(self.target)

    def load_config(self) -> Any:
        """The config class: the one registered, or the target's own ``Config``."""
        return self._import(self.config) if self.config else self.load().Config

    def _import(self, path: str) -> Any:
        module, _, attribute = path.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except Exception as error:
            raise FewstepError(
                f"{self.kind} {self.name!r} of plugin {self.plugin!r} cannot be loaded from {path!r}: "
                f"{type(error).__name__}: {error}"
            ) from error


@dataclass(frozen=True)
class Installed:
    """A plugin as found: its entry-point name, its distribution, and why it is broken if it is."""

    name: str
    distribution: str
    version: str
    error: str | None = None


@dataclass
class Registry:
    """All entries of all plugins."""

    plugins: list[Installed] = field(default_factory=list)
    manager: pluggy.PluginManager = field(default_factory=lambda: pluggy.PluginManager(hookspecs.GROUP))
    _entries: dict[tuple[str, str], list[Entry]] = field(default_factory=lambda: defaultdict(list))

    def add(self, entry: Entry) -> None:
        """File an entry under its name and aliases."""
        for name in (entry.name, *entry.aliases):
            self._entries[entry.kind, name].append(entry)

    def entries(self, kind: str) -> list[Entry]:
        """Entries of a kind by their main names, clashing ones included."""
        return [e for (k, name), found in sorted(self._entries.items()) if k == kind for e in found if e.name == name]

    def names(self, kind: str) -> list[str]:
        """Every usable name of a kind, aliases included."""
        return sorted(name for k, name in self._entries if k == kind)

    def clashes(self) -> list[str]:
        """One line for each name that more than one plugin claims."""
        return [_clash(kind, name, found) for (kind, name), found in sorted(self._entries.items()) if len(found) > 1]

    def get(self, kind: str, name: str) -> Entry:
        """The entry of that name or alias.

        Raises:
            FewstepError: unknown (with broken plugins named, since they may be the reason) or claimed twice.
        """
        found = self._entries.get((kind, name), [])
        if len(found) > 1:
            raise FewstepError(_clash(kind, name, found))
        if found:
            return found[0]
        error = unknown("method" if kind == "objective" else kind, name, self.names(kind))
        broken = "".join(f"\nplugin {p.name!r} did not load: {p.error}" for p in self.plugins if p.error)
        raise FewstepError(f"{error}{broken}")

    def load(self, point: metadata.EntryPoint) -> None:
        """Import one plugin and collect what it registers; whatever it raises is kept as its error."""
        distribution = point.dist.name if point.dist else "unknown"
        version = point.dist.version if point.dist else "unknown"
        before = {key: list(found) for key, found in self._entries.items()}
        try:
            plugin = point.load()
            self.manager.register(plugin, name=f"{distribution}:{point.name}")
            for kind in KINDS:
                self._collect(plugin, kind, point.name)
            error = None
        except BaseException as problem:
            if isinstance(problem, KeyboardInterrupt):
                raise
            self._entries = defaultdict(list, before)
            self.manager.unregister(name=f"{distribution}:{point.name}")
            error = f"{type(problem).__name__}: {problem}"
        self.plugins.append(Installed(point.name, distribution, version, error))

    def _collect(self, plugin: Any, kind: str, name: str) -> None:
        hook = getattr(plugin, f"register_{kind}s", None)
        if hook is not None:
            hook(register=partial(self._register, kind, name))

    def _register(
        self,
        kind: str,
        plugin: str,
        name: str,
        *,
        target: str,
        config: str | None = None,
        summary: str = "",
        aliases: tuple[str, ...] = (),
    ) -> None:
        self.add(Entry(kind, name, plugin, target, config, summary, tuple(aliases)))


def _clash(kind: str, name: str, found: list[Entry]) -> str:
    owners = " and ".join(repr(entry.plugin) for entry in found)
    return f"{kind} {name!r} is claimed by the plugins {owners}: uninstall one of them or rename its entry"


@lru_cache(maxsize=1)
def registry() -> Registry:
    """The registry of this process, filled from the entry points on the first call."""
    found = Registry()
    found.manager.add_hookspecs(hookspecs)
    for name, summary in BUILTIN.items():
        found.add(Entry("sampler", name, "fewstep", f"fewstep.sampler:{name}", None, summary))
    for point in sorted(metadata.entry_points(group=hookspecs.GROUP), key=lambda p: p.name):
        found.load(point)
    return found
