"""``fewstep students``, ``presets``, ``samplers``, ...: what is available, and where it comes from."""

from __future__ import annotations

from rich.table import Table

from fewstep.config import presets as files
from fewstep.console import Console, listing
from fewstep.errors import FewstepError
from fewstep.plugins.registry import Entry, registry


def students() -> None:
    """List the students that ship with the plugins, and how each is sampled."""
    from fewstep.engine.export import read_info

    table = listing("student", "method", "steps", "sampler", "guidance", "trained", "from")
    for backbone in registry().entries("backbone"):
        try:
            shipped = backbone.load().students()
        except FewstepError:  # a plugin whose packages are missing
            continue
        for name, folder in shipped.items():
            info = read_info(folder)
            contract = info.contract
            how = (", ".join(map(str, contract.steps)), contract.sampling, f"{contract.guidance:g}")
            table.add_row(f"{backbone.name}/{name}", info.method, *how, f"{info.step} iterations", origin(backbone))
    _show(table)


def presets() -> None:
    """List the presets that --preset takes, and the files that each is made of."""
    table = listing("preset", "method", "stage", "from", "file")
    for preset in files.shipped():
        table.add_row(preset.name, preset.method or "any", preset.stage or "any", preset.package, str(preset.path))
    _show(table)


def samplers() -> None:
    """List the samplers that --sampler and a student's contract name."""
    _show(entries("sampler"))


def metrics() -> None:
    """List the measures that `fewstep bench` can be built from (the functions of fewstep.metrics)."""
    _show(entries("metric"))


def trackers() -> None:
    """List the trackers that --tracker takes, besides metrics.jsonl, which every run writes."""
    _show(entries("tracker"))


def origin(entry: Entry) -> str:
    """The plugin that registered an entry, or the core."""
    return "core" if entry.plugin == "fewstep" else f"plugin {entry.plugin}"


def entries(kind: str) -> Table:
    """The registered entries of a kind: names, origin and summary."""
    table = listing(kind, "from", "what it is")
    for entry in registry().entries(kind):
        table.add_row(", ".join((entry.name, *entry.aliases)), origin(entry), entry.summary)
    return table


def _show(table: Table) -> None:
    Console().print(table if table.row_count else "none")
