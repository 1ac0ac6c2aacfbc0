"""``fewstep plugins``: what is installed, what each plugin registers, and what is wrong."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fewstep.registry import KINDS, Installed, Registry, registry

WORDS = {"objective": "methods"}


def plugins() -> None:
    """Show the installed plugins, what each registers, the broken ones and the clashes."""
    found, console = registry(), Console()
    table = Table("plugin", "distribution", "version", "registers", title="plugins", title_justify="left")
    for installed in found.plugins:
        table.add_row(
            *(Text(t) for t in (installed.name, installed.distribution, installed.version)), _offer(found, installed)
        )
    console.print(table)
    for installed in (p for p in found.plugins if p.error):
        console.print(Text(f"broken: plugin {installed.name!r}: {installed.error}", style="red"), soft_wrap=True)
    for line in found.clashes():
        console.print(Text(f"clash: {line}", style="yellow"), soft_wrap=True)


def _offer(found: Registry, installed: Installed) -> Text:
    if installed.error:
        return Text("nothing: broken, see below", style="red")
    lines = []
    for kind in KINDS:
        mine = [
            e for e in found.entries(kind) if (e.plugin, e.distribution) == (installed.name, installed.distribution)
        ]
        if mine:
            lines.append(f"{WORDS.get(kind, kind + 's')}: {', '.join(entry.name for entry in mine)}")
    if installed.commands:
        lines.append(f"commands: {', '.join(installed.commands)}")
    return Text("\n".join(lines) or "nothing")
