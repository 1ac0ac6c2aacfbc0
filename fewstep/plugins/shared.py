"""Which implementation of a shared command (``generate``, ``export``, ``teach``, ``data ...``) serves a call.

Implementations are registry entries of the kind "<command> command", under the name of their backbone. A function for
Python, where there is one, is an entry of the kind "<command> function".
"""

from __future__ import annotations

from fewstep.errors import FewstepError, nearest
from fewstep.plugins.registry import Entry, registry

SHIPPED = "fewstep"  # our own distribution, which wins where the user does not choose


def implementations(command: str) -> list[Entry]:
    """All implementations of a shared command, by name."""
    return registry().entries(f"{command} command")


def choose(command: str, name: str | None = None) -> Entry:
    """One implementation: the one named, else the only one, else the first that fewstep itself ships.

    Args:
        command: one of ``hookspecs.SHARED_COMMANDS``.
        name: of a backbone (for "data prepare": the kind of source).

    Raises:
        FewstepError: nobody offers the command, or not for this name, or there are several and none is ours.
    """
    offered = [entry.name for entry in implementations(command)]
    accepted = ", ".join(dict.fromkeys(offered))
    if not offered:
        raise FewstepError(f"no installed plugin offers `fewstep {command}`")
    if name is None:
        ours = [entry.name for entry in implementations(command) if entry.distribution == SHIPPED]
        if not ours and len(set(offered)) > 1:
            raise FewstepError(f"several backbones offer `fewstep {command}`; accepted: --backbone with {accepted}")
        name = (ours or offered)[0]
    if name not in offered:
        hint = f"; did you mean {close!r}?" if (close := nearest(name, offered)) else ""
        raise FewstepError(f"--backbone: {name!r} does not offer `fewstep {command}`; accepted: {accepted}{hint}")
    return registry().get(f"{command} command", name)
