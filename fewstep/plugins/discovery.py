"""Finding plugins by their entry points, and calling their hooks so that none can break the others."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Any

from fewstep.errors import FewstepError
from fewstep.plugins import hookspecs
from fewstep.plugins.registry import KINDS, Entry, Installed, Registry


def discover(found: Registry) -> None:
    """Load every entry point of the group "fewstep", by name."""
    for point in sorted(metadata.entry_points(group=hookspecs.GROUP), key=lambda p: p.name):
        load(found, point)


def load(found: Registry, point: metadata.EntryPoint) -> None:
    """Import one plugin and collect what it registers; whatever it raises is kept as its error."""
    installed = Installed(point.name, *_origin(point))
    found.plugins.append(installed)

    def register_all() -> None:
        plugin = point.load()
        found.manager.register(plugin, name=installed.key)
        _check(plugin)
        found.manager.check_pending()  # a hook that we do not have: a misspelling, or a newer fewstep's
        for kind in KINDS:
            call(found, installed, f"register_{kind}s", register=_registrar(found, kind, installed))

    error = problem(register_all)
    if error:
        found.remove(installed)
        found.manager.unregister(name=installed.key)
        found.update(installed, error=error)


def problem(work: Callable[[], object]) -> str | None:
    """Run a plugin's code; what it raised as one line, or None."""
    try:
        work()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a plugin does not end the program
        text = " ".join(str(error).split())
        return f"{type(error).__name__}: {text}"[:300]
    return None


def call(found: Registry, installed: Installed, hook: str, **arguments: Any) -> None:
    """Call one hook of one plugin."""
    manager = found.manager
    others = [other for name, other in manager.list_name_plugin() if name != installed.key]
    manager.subset_hook_caller(hook, others)(**arguments)


def _registrar(found: Registry, kind: str, installed: Installed) -> hookspecs.Register:
    def register(
        name: str, *, target: str, config: str | None = None, summary: str = "", aliases: tuple[str, ...] = ()
    ) -> None:
        for path in (target, *([config] if config else [])):
            module, _, attribute = path.partition(":")
            if not module or not attribute:
                raise FewstepError(f"{kind} {name!r}: got {path!r}; accepted: 'package.module:Name'")
        entry = Entry(kind, name, installed.name, target, config, summary, tuple(aliases), installed.distribution)
        found.add(entry)

    return register


def _check(plugin: Any) -> None:
    """A function with the name of a hook but without the mark would be silently ignored."""
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
