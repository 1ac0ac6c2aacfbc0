"""``fewstep data inspect``: which objects a data set takes from its roots, why not the others, how large they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from fewstep.config.base import merge, parse_override, validate
from fewstep.errors import unknown
from fewstep_trellis.official.condition import prepared_picture
from fewstep_trellis.official.config import LatentsConfig, OfficialConfig, StructureConfig
from fewstep_trellis.official.files import ItemError
from fewstep_trellis.official.items import read_item
from fewstep_trellis.official.selection import RootCount, Selection, select

CONFIGS: dict[str, type[OfficialConfig]] = {"ss": StructureConfig, "slat": LatentsConfig}
QUANTILES = (0.05, 0.5, 0.95, 1.0)
SHOWN = 20


def inspect(roots: str, stage: str, overrides: Sequence[str], files: int, console: Console) -> bool:
    """Print what a data set of these roots holds.

    Args:
        overrides: keys of the data set, KEY=VALUE.
        files: objects whose files are read, spread evenly.

    Returns:
        Whether all of these could be read.

    Raises:
        FewstepError: for an unknown stage or key, or a root without a readable table.
    """
    if stage not in CONFIGS:
        raise unknown("--stage", stage, CONFIGS)
    config = validate(CONFIGS[stage], merge({"roots": roots}, *(parse_override(text) for text in overrides)))
    chosen = select(config.roots, config.filters())
    console.print(counted(chosen))
    for line in said(chosen, config):
        console.print(Text(line), soft_wrap=True)
    broken = list(unreadable(chosen, config, files))
    if files:
        console.print(Text(f"read {min(files, len(chosen.rows))} objects: {len(broken)} cannot be used"))
    for error in broken[:SHOWN]:
        console.print(Text(f"  {error}"), soft_wrap=True)
    return not broken


def counted(chosen: Selection) -> Table:
    """Rows left after each filter, by root, with what was taken away and why."""
    table = Table(Column("root", overflow="fold"), "filter", "left", "dropped", "no value")
    for count in chosen.counts:
        for cells in _steps(count):
            table.add_row(*(Text(cell) for cell in cells))
    return table


def _steps(count: RootCount) -> Iterable[list[str]]:
    before = None
    for name, left in count.left.items():
        dropped = "" if before is None else str(before - left)
        yield [str(count.root) if before is None else "", name, str(left), dropped, str(count.missing.get(name, ""))]
        before = left


def said(chosen: Selection, config: OfficialConfig) -> list[str]:
    """The total, objects that are in two roots, and sizes, by which a voxel budget is chosen."""
    lines = [f"in all: {len(chosen.rows)} objects", *chosen.doubled()]
    if isinstance(config, LatentsConfig) and chosen.rows:
        voxels = [row.number("num_voxels") or 0 for row in chosen.rows]
        sizes = np.quantile(voxels, QUANTILES, method="nearest").astype(int).tolist()
        lines.append("voxels: " + ", ".join(f"{n} at {q:.0%}" for q, n in zip(QUANTILES, sizes, strict=True)))
    return lines


def unreadable(chosen: Selection, config: OfficialConfig, count: int) -> Iterable[ItemError]:
    """What is wrong with the files of ``count`` objects, spread evenly over the set."""
    rows = chosen.rows
    for place in np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)).tolist():
        try:
            item = read_item(rows[place], config, None, lambda _: 0)
            if item.picture is not None:
                prepared_picture(item.picture, config.image_size)
        except ItemError as error:
            yield error
