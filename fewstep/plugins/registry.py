"""What is installed: entries by kind and name, clashes and broken plugins.

A broken plugin is reported and never fatal. A name that two plugins claim is an error only when that name is asked for.
Finding plugins imports no torch.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from importlib import metadata
from typing import Any

import pluggy

from fewstep.errors import FewstepError, unknown
from fewstep.plugins import hookspecs
from fewstep.plugins.entries import PLUS, Combined, Entry, combined, word

__all__ = ["BUILTIN", "KINDS", "Combined", "Entry", "Installed", "Registry", "registry"]

KINDS = ("objective", "backbone", "dataset", "sampler", "kernel", "tracker")
SAMPLERS = {
    "euler": "first order along the velocity",
    "heun": "second order, two evaluations per step",
    "consistency": "jump to the data, put noise on it, a share of it fresh (by default all)",
    "jump": "two-time jump F(x, t, s)",
    "gamma": "two-time jump past s, fresh noise up to s; gamma from 0 (jump) to 1 (all fresh), by default 0.5",
}
METRICS = {
    "agreement": "R squared of paired samples",
    "frechet": "Fréchet distance on the leading principal components",
    "frechet_gaussians": "the same of two means and covariances",
    "kid": "kernel Inception distance, unbiased",
    "mmd_rbf": "squared maximum mean discrepancy, Gaussian kernel, unbiased",
    "precision_recall": "shares of each set that lie among the other",
    "sliced_wasserstein": "sliced 2-Wasserstein distance",
}
BUILTIN = {"sampler": ("core.samplers", SAMPLERS), "metric": ("metrics", METRICS)}  # kind: module, names


@dataclass(frozen=True)
class Installed:
    """A plugin as found: its entry-point name, its distribution, its commands, and why it is broken if it is."""

    name: str
    distribution: str
    version: str
    error: str | None = None
    commands: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The name under which pluggy knows it."""
        return f"{self.distribution}:{self.name}"


@dataclass
class Registry:
    """All entries of all plugins."""

    plugins: list[Installed] = field(default_factory=list)
    command_clashes: list[str] = field(default_factory=list)
    manager: pluggy.PluginManager = field(default_factory=lambda: pluggy.PluginManager(hookspecs.GROUP))
    _entries: dict[tuple[str, str], list[Entry]] = field(default_factory=lambda: defaultdict(list))

    def add(self, entry: Entry) -> None:
        """File an entry under its name and aliases."""
        for name in dict.fromkeys((entry.name, *entry.aliases)):
            self._entries[entry.kind, name].append(entry)

    def remove(self, plugin: Installed) -> None:
        """Forget the entries of a plugin, so that one that broke half-way leaves nothing behind."""
        removed = (plugin.name, plugin.distribution)
        for key, entries in list(self._entries.items()):
            self._entries[key] = [e for e in entries if (e.plugin, e.distribution) != removed]
            if not self._entries[key]:
                del self._entries[key]

    def update(self, plugin: Installed, **changes: Any) -> None:
        """Change what is known of a plugin."""
        self.plugins = [replace(p, **changes) if p.key == plugin.key else p for p in self.plugins]

    def entries(self, kind: str) -> list[Entry]:
        """Entries of a kind by their main names, clashing ones included."""
        return [e for (k, name), claims in sorted(self._entries.items()) if k == kind for e in claims if e.name == name]

    def all(self) -> list[Entry]:
        """Entries of every kind."""
        return [entry for claims in self._entries.values() for entry in claims]

    def names(self, kind: str) -> list[str]:
        """Every usable name of a kind, aliases included, clashing ones left out."""
        return sorted(name for (k, name), claims in self._entries.items() if k == kind and len(claims) == 1)

    def clashes(self) -> list[str]:
        """One line for each name that more than one plugin claims."""
        names = [
            _clash(kind, name, claims) for (kind, name), claims in sorted(self._entries.items()) if len(claims) > 1
        ]
        return names + self.command_clashes

    def get(self, kind: str, name: str) -> Entry:
        """The entry of that name or alias; for methods also a sum of several, ``cm+dmd2``.

        Raises:
            FewstepError: for a name that is unknown (broken plugins are named too, since they may be the reason) or
                claimed twice.
        """
        entries = self._entries.get((kind, name), [])
        if kind == "objective" and PLUS in name and not entries:
            return combined(name, partial(self.get, kind))
        if len(entries) > 1:
            raise FewstepError(_clash(kind, name, entries))
        if entries:
            return entries[0]
        other = [word(k) for k in KINDS if (k, name) in self._entries]
        also = f"; {name!r} is the name of a {other[0]}" if other else ""
        broken = "".join(f"\nplugin {p.name!r} did not load: {p.error}" for p in self.plugins if p.error)
        raise FewstepError(f"{unknown(word(kind), name, self.names(kind))}{also}{broken}")


def _clash(kind: str, name: str, entries: list[Entry]) -> str:
    owners = " and ".join(entry.owner for entry in entries)
    return f"{word(kind)} {name!r} is claimed by the plugins {owners}: uninstall one of them or rename its entry"


def discover(into: Registry) -> None:
    """Load every entry point of the group "fewstep", by name."""
    for point in sorted(metadata.entry_points(group=hookspecs.GROUP), key=lambda p: p.name):
        load(into, point)


def load(into: Registry, point: metadata.EntryPoint) -> None:
    """Import one plugin and collect what it registers; whatever it raises is kept as its error."""
    installed = Installed(point.name, *_origin(point))
    into.plugins.append(installed)

    def register_all() -> None:
        plugin = point.load()
        into.manager.register(plugin, name=installed.key)
        _check(plugin)
        into.manager.check_pending()  # refuses an unknown hook: a misspelling, or one of a newer fewstep
        for kind in KINDS:
            call(into, installed, f"register_{kind}s", register=_registrar(into, kind, installed))
        call(into, installed, "register_shared_commands", register=_shared_registrar(into, installed))

    error = problem(register_all)
    if error:
        into.remove(installed)
        into.manager.unregister(name=installed.key)
        into.update(installed, error=error)


def problem(work: Callable[[], object]) -> str | None:
    """Run a plugin's code; returns what it raised as one line, or None."""
    try:
        with redirect_stdout(sys.stderr):  # standard output is a command's own, which may be JSON
            work()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a plugin does not end the program
        text = " ".join(str(error).split())
        return f"{type(error).__name__}: {text}"[:300]
    return None


def call(into: Registry, installed: Installed, hook: str, **arguments: Any) -> None:
    """Call one hook of one plugin."""
    manager = into.manager
    others = [other for name, other in manager.list_name_plugin() if name != installed.key]
    manager.subset_hook_caller(hook, others)(**arguments)


def _registrar(into: Registry, kind: str, installed: Installed) -> hookspecs.Register:
    def register(
        name: str, *, target: str, config: str | None = None, summary: str = "", aliases: tuple[str, ...] = ()
    ) -> None:
        values = (kind, name, installed.name, target, config, summary, tuple(aliases), installed.distribution)
        if kind == "objective" and PLUS in target:
            into.add(Combined(*values, find=partial(into.get, kind)))
            return
        for path in (target, *([config] if config else [])):
            _check_path(f"{kind} {name!r}", path)
        into.add(Entry(*values))

    return register


def _shared_registrar(into: Registry, installed: Installed) -> hookspecs.RegisterShared:
    def register(command: str, name: str, *, target: str, summary: str = "", function: str | None = None) -> None:
        if command not in hookspecs.SHARED_COMMANDS:
            raise unknown("shared command", command, hookspecs.SHARED_COMMANDS)
        for kind, path in ((f"{command} command", target), (f"{command} function", function)):
            if path is not None:
                _check_path(f"{kind} {name!r}", path)
                into.add(Entry(kind, name, installed.name, path, None, summary, (), installed.distribution))

    return register


def _check_path(key: str, path: str) -> None:
    module, _, attribute = path.partition(":")
    if not module or not attribute:
        raise FewstepError(f"{key}: got {path!r}; accepted: 'package.module:Name'")


def _check(plugin: Any) -> None:
    """Refuse a function with the name of a hook but without the mark, which pluggy would silently ignore."""
    for name in (n for n in vars(hookspecs) if n.startswith("register_")):
        function = getattr(plugin, name, None)
        if callable(function) and not hasattr(function, "fewstep_impl"):
            raise FewstepError(f"{name} is not marked: write @fewstep.hookimpl above it")


def _origin(point: metadata.EntryPoint) -> tuple[str, str]:
    try:
        name, version = (point.dist.name, point.dist.version) if point.dist else (None, None)
    except Exception:  # damaged metadata
        name, version = None, None
    return str(name or "unknown"), str(version or "unknown")


@lru_cache(maxsize=1)
def registry() -> Registry:
    """The registry of this process, filled from the entry points on the first call."""
    filled = Registry()
    filled.manager.add_hookspecs(hookspecs)
    for kind, (module, names) in BUILTIN.items():
        for name, summary in names.items():
            filled.add(Entry(kind, name, "fewstep", f"fewstep.{module}:{name}", None, summary))
    discover(filled)
    return filled
