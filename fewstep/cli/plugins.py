"""``fewstep plugins``: what is installed, what each plugin registers, and what is wrong."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fewstep.plugins.hookspecs import SHARED_COMMANDS
from fewstep.plugins.registry import KINDS, Installed, Registry, registry
from fewstep.plugins.shared import implementations

WORDS = {"objective": "methods"}


def plugins() -> None:
    """Show the installed plugins, what each registers, the broken ones and the clashes."""
    found, console = registry(), Console()
    table = Table("plugin", "distribution", "version", "registers", title="plugins", title_justify="left")
    for installed in found.plugins:
        origin = (installed.name, installed.distribution, installed.version)
        table.add_row(*(Text(text) for text in origin), _offer(found, installed))
    console.print(table)
    for installed in (p for p in found.plugins if p.error):
        console.print(Text(f"broken: plugin {installed.name!r}: {installed.error}", style="red"), soft_wrap=True)
    for line in found.clashes():
        console.print(Text(f"clash: {line}", style="yellow"), soft_wrap=True)


def _offer(found: Registry, installed: Installed) -> Text:
    mine, lines = (installed.name, installed.distribution), []
    for kind in KINDS:
        names = [e.name for e in found.entries(kind) if (e.plugin, e.distribution) == mine]
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
