"""The committed table of what every shipped tile compiles to, and what counts as worse."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fewstep_kernels.aot.measure import Measured

FIELDS = tuple(Measured.__dataclass_fields__)
SLACK = 8  # registers that the compiler may vary by


def write(path: Path, rows: Iterable[Measured]) -> None:
    """One line per tile, sorted by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.row() for row in sorted(rows, key=lambda row: row.name))


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The rows by name; an empty table where there is no file."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def worse(new: Measured, old: dict[str, Any] | None) -> list[str]:
    """In which respects a tile is worse than its row of the table, which must exist."""
    if old is None:
        return ["not in the table (run without --check)"]
    found = []
    if new.spills > int(old["spills"]):
        found.append(f"local memory: {old['spills']} instructions before, {new.spills} now")
    if new.matrix == 0 < int(old["matrix"]):
        found.append(f"matrix instructions: {old['matrix']} before, none now")
    if new.registers > int(old["registers"]) + SLACK:
        found.append(f"registers: {old['registers']} before, {new.registers} now")
    if new.shared > int(old["shared"]):
        found.append(f"shared memory: {old['shared']} bytes before, {new.shared} now")
    return found
