"""``fewstep plugins``: what is installed, what each plugin registers, and what is wrong."""

from __future__ import annotations

from rich.text import Text

import fewstep
from fewstep.cli.lists import entries
from fewstep.console import Console, listing, say
from fewstep.plugins.hookspecs import SHARED_COMMANDS
from fewstep.plugins.registry import KINDS, Installed, Registry, registry
from fewstep.plugins.shared import implementations

WORDS = {"objective": "methods"}
DESCRIBED = ("sampler", "metric", "tracker")


def plugins() -> None:
    """Show the installed plugins, what each registers and what is wrong; then the samplers, metrics and trackers."""
    registered, console = registry(), Console()
    table = listing("plugin", "distribution", "version", "registers", title="plugins")
    core = Installed("fewstep", "", fewstep.__version__)
    table.add_row("(core)", "fewstep", core.version, _offer(registered, core))
    for installed in registered.plugins:
        table.add_row(installed.name, installed.distribution, installed.version, _offer(registered, installed))
    console.print(table)
    for installed in (p for p in registered.plugins if p.error):
        say(console, f"broken: plugin {installed.name!r}: {installed.error}", "red")
    for line in registered.clashes():
        say(console, f"clash: {line}", "yellow")
    for kind in DESCRIBED:
        console.print(entries(kind))


def _offer(registered: Registry, installed: Installed) -> Text:
    mine, lines = (installed.name, installed.distribution), []
    for kind in dict.fromkeys((*KINDS, *DESCRIBED)):
        names = [e.name for e in registered.entries(kind) if (e.plugin, e.distribution) == mine]
        if names:
            lines.append(f"{WORDS.get(kind, kind + 's')}: {', '.join(names)}")
    shared = [
        f"{command} ({e.name})"
        for command in SHARED_COMMANDS
        for e in implementations(command)
        if (e.plugin, e.distribution) == mine
    ]
    if commands := [*shared, *installed.commands]:
        lines.append(f"commands: {', '.join(commands)}")
    if installed.error:
        lines.append("broken, see below")
    return Text("\n".join(lines) or "nothing", style="red" if installed.error else "")
