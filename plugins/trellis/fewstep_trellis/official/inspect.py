"""``fewstep data inspect``: which objects a data set takes from its roots, why not the others, how large they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from fewstep.config.base import merge, parse_override, validate
from fewstep.console import number_of, say
from fewstep.engine.progress import counting
from fewstep.errors import unknown
from fewstep_trellis.checkpoint import read_config
from fewstep_trellis.official.condition import picture_paths, prepared_picture
from fewstep_trellis.official.config import LatentsConfig, OfficialConfig, StructureConfig
from fewstep_trellis.official.files import ItemError
from fewstep_trellis.official.fits import ANY, Fits
from fewstep_trellis.official.items import read_item
from fewstep_trellis.official.selection import RootCount, Selection, select
from fewstep_trellis.official.table import Row
from fewstep_trellis.shipped import existing

CONFIGS: dict[str, type[OfficialConfig]] = {"ss": StructureConfig, "slat": LatentsConfig}
QUANTILES = (0.05, 0.5, 0.95, 1.0)
SHOWN = 20


def inspect(
    roots: str, stage: str, overrides: Sequence[str], files: int, console: Console, teacher: Path | None = None
) -> bool:
    """Print what a data set of these roots holds.

    Args:
        overrides: keys of the data set, KEY=VALUE.
        files: objects whose files are read, spread evenly.
        teacher: checkpoint of the network that their latents must fit; None: they must be like most of them.

    Returns:
        Whether all of these can be used.

    Raises:
        FewstepError: for an unknown stage or key, a root without a readable table, or an unreadable teacher.
    """
    if stage not in CONFIGS:
        raise unknown("--stage", stage, CONFIGS)
    config = validate(CONFIGS[stage], merge({"roots": roots}, *(parse_override(text) for text in overrides)))
    fits = sizes_of(teacher)
    chosen = select(config.roots, config.filters())
    console.print(counted(chosen))
    for line in said(chosen, config):
        say(console, line)
    broken = list(unusable(chosen, config, fits, files, console))
    if files:
        say(console, f"read {number_of(min(files, len(chosen.rows)), 'object')}: {len(broken)} cannot be used")
    for error in broken[:SHOWN]:
        say(console, f"  {error}")
    if len(broken) > SHOWN:
        say(console, f"  and {len(broken) - SHOWN} more")
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
    lines = [f"in all: {number_of(len(chosen.rows), 'object')}", *chosen.doubled()]
    if isinstance(config, LatentsConfig) and chosen.rows:
        voxels = [row.number("num_voxels") or 0 for row in chosen.rows]
        sizes = np.quantile(voxels, QUANTILES, method="nearest").astype(int).tolist()
        lines.append("voxels: " + ", ".join(f"{n} at {q:.0%}" for q, n in zip(QUANTILES, sizes, strict=True)))
    return lines


def unusable(
    chosen: Selection, config: OfficialConfig, fits: Fits, count: int, console: Console
) -> Iterator[ItemError]:
    """What is wrong with ``count`` objects, spread evenly over the set. Without a teacher, most of them are right."""
    ends = np.linspace(0, len(chosen.rows) - 1, min(count, len(chosen.rows)))
    rows = [chosen.rows[place] for place in np.unique(ends.round().astype(int)).tolist()]
    found = list[Fits | ItemError]()
    with counting(console) as progress, ThreadPoolExecutor(config.workers) as pool:
        for one in pool.map(lambda row: checked(row, config, fits), rows):
            found.append(one)
            progress(len(found), len(rows), "reading objects")
    usual = Counter(one for one in found if isinstance(one, Fits)).most_common(1)
    for row, one in zip(rows, found, strict=True):
        try:
            if isinstance(one, ItemError):
                raise one
            replace(usual[0][0], whose="most objects have").check(f"{row.root}, {row.sha256}", one)
        except ItemError as error:
            yield error


def checked(row: Row, config: OfficialConfig, fits: Fits) -> Fits | ItemError:
    """The sizes of an object's latents, or why it cannot be used: as training reads it, with every picture."""
    try:
        item = read_item(row, config, None, lambda _: 0, fits)
        for path in picture_paths(row) if item.picture is not None else ():
            prepared_picture(path, config.image_size)
    except ItemError as error:
        return error
    return Fits.sizes(item.latents)


def sizes_of(teacher: Path | None) -> Fits:
    """What a checkpoint's network takes, by its json file alone; anything without one."""
    if teacher is None:
        return ANY
    stem = str(existing("--teacher", teacher)).removesuffix(".safetensors").removesuffix(".json")
    _, arguments = read_config(Path(f"{stem}.json"))
    return Fits(arguments.get("in_channels"), arguments.get("resolution"))
