"""Which implementation of a shared command (``generate``, ``export``, ``teach``, ``data ...``) serves a call.

Implementations are registry entries of the kind "<command> command", under the name of their backbone. A function for
Python, where there is one, is an entry of the kind "<command> function".
"""

from __future__ import annotations

from fewstep.errors import FewstepError, nearest
from fewstep.plugins.hookspecs import ANY
from fewstep.plugins.registry import Entry, registry

SHIPPED = "fewstep"  # our own distribution, which wins unless the user chooses


def implementations(command: str) -> list[Entry]:
    """All implementations of a shared command, by name."""
    return registry().entries(f"{command} command")


def choose(command: str, name: str | None = None) -> Entry:
    """One implementation: the one named, else the first that fewstep itself ships, else the only one. An implementation
    for ``ANY`` serves the backbones without their own.

    Args:
        command: one of ``hookspecs.SHARED_COMMANDS``.
        name: of a backbone (for "data prepare": the kind of source).

    Raises:
        FewstepError: if no plugin offers the command or offers it for this name, or several do and none is ours.
    """
    entries = implementations(command)
    if not entries:
        raise FewstepError(f"no installed plugin offers `fewstep {command}`")
    named = [entry for entry in entries if entry.name != ANY]
    offered = [entry.name for entry in named]
    accepted = ", ".join(dict.fromkeys(offered))
    if name is None:
        ours = [entry.name for entry in named if entry.distribution == SHIPPED]
        if not ours and len(set(offered)) > 1:
            raise FewstepError(f"several backbones offer `fewstep {command}`; accepted: --backbone with {accepted}")
        name = (ours or offered or [ANY])[0]
    elif name not in offered and len(named) < len(entries):
        registry().get("backbone", name)  # refuses one that is not registered
        name = ANY
    elif name not in offered:
        hint = f"; did you mean {close!r}?" if (close := nearest(name, offered)) else ""
        raise FewstepError(f"--backbone: {name!r} does not offer `fewstep {command}`; accepted: {accepted}{hint}")
    return registry().get(f"{command} command", name)
