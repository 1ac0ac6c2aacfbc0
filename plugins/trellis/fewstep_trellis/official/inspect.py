"""``fewstep data inspect``: which objects a data set takes from its roots, why not the others, how large they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from fewstep_shapes3d.pictures.preprocess import MARGIN
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from fewstep.config.base import merge, parse_override, validate
from fewstep.console import number_of, say
from fewstep.engine.progress import counting
from fewstep.errors import unknown
from fewstep_trellis.checkpoint import read_config
from fewstep_trellis.official.condition import picture_paths, prepared_picture
from fewstep_trellis.official.config import LatentsConfig, ObjectsConfig, StructureConfig
from fewstep_trellis.official.files import ItemError
from fewstep_trellis.official.fits import ANY, Fits
from fewstep_trellis.official.items import Item, read_item
from fewstep_trellis.official.selection import RootCount, Selection, select
from fewstep_trellis.official.table import Row
from fewstep_trellis.shipped import existing

QUANTILES = (0.05, 0.5, 0.95, 1.0)
SHOWN = 20


@dataclass(frozen=True)
class Source:
    """How the data of a stage are read.

    Args:
        config: class of the data set's config.
        select: the objects that a config asks for.
        read: an object's item, checked against sizes, with the first of its pictures. Raises ItemError.
        pictures: all of its pictures. Raises ItemError.
        fits: the sizes that a network takes, by the arguments of its constructor.
        count: column with the number of an object's voxels; "": it has none.
        margin: of a prepared picture.
    """

    config: type[ObjectsConfig]
    select: Callable[[Any], Selection]
    read: Callable[[Row, Any, Fits], Item]
    pictures: Callable[[Any], list[Path]]
    fits: Callable[[Mapping[str, Any]], Fits]
    count: str = ""
    margin: float = MARGIN


def source(config: type[ObjectsConfig], count: str = "") -> Source:
    """A stage of TRELLIS."""
    return Source(
        config,
        lambda config: select(config.roots, config.filters()),
        lambda row, config, fits: read_item(row, config, None, lambda _: 0, fits),
        picture_paths,
        Fits.taken,
        count,
    )


STAGES = {"ss": source(StructureConfig), "slat": source(LatentsConfig, "num_voxels")}


def inspect(
    roots: str,
    stage: str,
    overrides: Sequence[str],
    files: int,
    console: Console,
    teacher: Path | None = None,
    stages: Mapping[str, Source] = STAGES,
) -> bool:
    """Print what a data set of these roots holds.

    Args:
        overrides: keys of the data set, KEY=VALUE.
        files: objects whose files are read, spread evenly.
        teacher: checkpoint of the network that their latents must fit; None: their sizes must be those of most.
        stages: what ``stage`` may name.

    Returns:
        Whether all of these can be used.

    Raises:
        FewstepError: for an unknown stage or key, a root without a readable table, or an unreadable teacher.
    """
    if stage not in stages:
        raise unknown("--stage", stage, stages)
    source = stages[stage]
    config = validate(source.config, merge({"roots": roots}, *(parse_override(text) for text in overrides)))
    fits = ANY if teacher is None else source.fits(arguments_of(teacher))
    chosen = source.select(config)
    console.print(counted(chosen))
    for line in said(chosen, source.count):
        say(console, line)
    broken = list(unusable(chosen, source, config, fits, files, console))
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


def said(chosen: Selection, count: str) -> list[str]:
    """The total, objects that are in two roots, and sizes, by which a voxel budget is chosen."""
    lines = [f"in all: {number_of(len(chosen.rows), 'object')}", *chosen.doubled()]
    if count and chosen.rows:
        voxels = [row.number(count) or 0 for row in chosen.rows]
        sizes = np.quantile(voxels, QUANTILES, method="nearest").astype(int).tolist()
        lines.append("voxels: " + ", ".join(f"{n} at {q:.0%}" for q, n in zip(QUANTILES, sizes, strict=True)))
    return lines


def unusable(
    chosen: Selection, source: Source, config: ObjectsConfig, fits: Fits, count: int, console: Console
) -> Iterator[ItemError]:
    """What is wrong with ``count`` objects, spread evenly over the set. The commonest sizes are taken to be right."""
    ends = np.linspace(0, len(chosen.rows) - 1, min(count, len(chosen.rows)))
    rows = [chosen.rows[place] for place in np.unique(ends.round().astype(int)).tolist()]
    found = list[Fits | ItemError]()
    with counting(console) as progress, ThreadPoolExecutor(config.workers) as pool:
        for one in pool.map(lambda row: checked(row, source, config, fits), rows):
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


def checked(row: Row, source: Source, config: ObjectsConfig, fits: Fits) -> Fits | ItemError:
    """The sizes of an object's latents, or why it cannot be used: as training reads it, with every picture."""
    try:
        item = source.read(row, config, fits)
        for path in source.pictures(row) if item.picture is not None else ():
            prepared_picture(path, config.image_size, source.margin)
    except ItemError as error:
        return error
    return Fits.sizes(item.latents)


def arguments_of(teacher: Path) -> dict[str, Any]:
    """The arguments of a checkpoint's network, by its json file alone."""
    stem = str(existing("--teacher", teacher)).removesuffix(".safetensors").removesuffix(".json")
    return read_config(Path(f"{stem}.json"))[1]
