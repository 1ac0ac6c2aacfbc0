"""``fewstep data inspect`` and ``fewstep teach`` for TRELLIS. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from fewstep.cli.invocation import again, going_on
from fewstep.cli.options import DEVICE, whole
from fewstep.console import Console

STAGES = (
    "Structure: vae, decoder, flow, measure, or all of these (all). Structured latents: targets, slat-vae, slat-mesh, "
    "slat-gs, slat-measure-vae, slat-flow, slat-measure, or all of these (slat)."
)


def inspect(
    roots: Annotated[str, Argument(help="Data roots in TRELLIS's own layout, joined by commas.")],
    overrides: Annotated[
        list[str] | None, Argument(metavar="KEY=VALUE", help="Keys of the data set, e.g. min_aesthetic=5.5.")
    ] = None,
    stage: Annotated[str, Option(help="ss or slat.")] = "slat",
    files: Annotated[int, whole("--files", "How many objects' files to read, to find unusable ones.", 0)] = 0,
    teacher: Annotated[Path | None, Option(help="Checkpoint of the network that these objects must fit.")] = None,
) -> None:
    """Count what TRELLIS data roots hold for a stage, and why rows are left out; exit code 1 for unusable objects."""
    from fewstep_trellis.official.inspect import inspect as run

    if not run(roots, stage, overrides or [], files, Console(), teacher):
        raise typer.Exit(1)


def teach(
    overrides: Annotated[
        list[str] | None,
        Argument(metavar="KEY=VALUE", help="root, source, vae.*, flow.*, slat_vae.*, train.*, ..."),
    ] = None,
    stage: Annotated[str, Option(help=STAGES)] = "all",
    out: Annotated[Path, Option("--out", "-o", help="Folder of the models.")] = Path("runs/teach"),
    device: Annotated[str, DEVICE] = "auto",
    resume: Annotated[bool, Option("--resume", help="Go on where a killed run stopped, with the same keys.")] = False,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Print the config, check the files that it names, and start nothing.")
    ] = False,
    help_config: Annotated[bool, Option("--help-config", help="List every key of these stages.")] = False,
) -> None:
    """Train the VAE and the teacher flow of a stage on a prepared set; by default at a size for a CPU."""
    from fewstep_trellis.teach.command import teach as run

    keys = overrides or []
    asked = {"resume": resume, "dry_run": dry_run, "help_config": help_config}
    with going_on(lambda: f"to go on: {again('--resume')}"):
        run(stage, out, keys, device=device, **asked, console=Console())
