"""``fewstep data inspect --backbone trellis2`` as a command. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from fewstep.cli.options import whole
from fewstep.console import Console


def inspect(
    roots: Annotated[str, Argument(help="JSON files of roots in TRELLIS.2's own layout, joined by commas.")],
    overrides: Annotated[
        list[str] | None, Argument(metavar="KEY=VALUE", help="Keys of the data set, e.g. min_aesthetic=5.5.")
    ] = None,
    stage: Annotated[str, Option(help="structure, shape, shape-1024 or texture.")] = "shape",
    files: Annotated[int, whole("--files", "How many objects' files to read, to find unusable ones.", 0)] = 0,
    teacher: Annotated[Path | None, Option(help="Checkpoint of the network that these objects must fit.")] = None,
) -> None:
    """Count what TRELLIS.2 data roots hold for a stage, and why rows are left out; exit code 1 for unusable objects."""
    from fewstep_trellis.official.inspect import inspect as run

    from fewstep_trellis2.dataset.inspection import SOURCES

    if not run(roots, stage, overrides or [], files, Console(), teacher, SOURCES):
        raise typer.Exit(1)
