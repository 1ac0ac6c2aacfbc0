"""The commands that the TRELLIS plugin adds: ``generate``, ``export``, ``data ...``, ``teach``. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from typer import Argument, Option

from fewstep.cli.lists import whole
from fewstep.errors import unknown
from fewstep_trellis.generate.cli import export, generate

CATALOGUES = ("sweethome3d",)
STAGES = (
    "vae, flow, measure or all (these three); "
    "targets, slat-vae, slat-mesh, slat-gs, slat-measure-vae, slat-flow, slat-measure or slat (these)."
)


def add_commands(app: typer.Typer) -> None:
    """What ``register_commands`` of the plugin does."""
    data = typer.Typer(help="Prepare data sets.", no_args_is_help=True)
    data.callback()(_group)  # keeps `prepare` a subcommand while it is the only one
    data.command(no_args_is_help=True)(prepare)
    data.command(no_args_is_help=True)(inspect)
    app.add_typer(data, name="data")
    app.command()(teach)
    app.command(no_args_is_help=True)(generate)
    app.command(no_args_is_help=True)(export)


def _group() -> None: ...


def prepare(
    name: Annotated[str, Argument(help="Kind of catalogue: sweethome3d.")],
    source: Annotated[list[Path], Option("--source", "-s", help="Folder of .sh3f files, or one file; repeatable.")],
    out: Annotated[Path, Option("--out", "-o", help="Folder to make; must not exist.")],
    resolution: Annotated[int, whole("--resolution", "Voxels on a side, an even number.", 2, 256)] = 32,
    views: Annotated[int, whole("--views", "Pictures of each object.", 1, 64)] = 2,
    channels: Annotated[int, whole("--channels", "Width of the picture tokens.", 1, 1280)] = 48,
    seed: Annotated[int, whole("--seed", "Seed of cameras and split.", 0, 2**31 - 1)] = 0,
    test_clusters: Annotated[int, whole("--test-clusters", "Clusters of near-duplicates kept for testing.", 1)] = 96,
    limit: Annotated[int | None, whole("--limit", "Read so many models only, to try it out.", 2)] = None,
    workers: Annotated[int, whole("--workers", "Processes.", 1, 256)] = 2,
) -> None:
    """Read furniture catalogues, voxelise, render, encode and split them into a prepared set."""
    if name not in CATALOGUES:
        raise unknown("catalogue", name, CATALOGUES)

    from fewstep_shapes3d.data.prepare import prepare_sweethome3d

    with shown() as progress:
        manifest = prepare_sweethome3d(
            source[0] if len(source) == 1 else source,
            out,
            resolution=resolution,
            views=views,
            channels=channels,
            seed=seed,
            test_clusters=test_clusters,
            limit=limit,
            workers=workers,
            progress=progress,
        )
    Console().print(Text(f"{out}: {summary(manifest)}"), soft_wrap=True)


def inspect(
    roots: Annotated[str, Argument(help="Data roots in TRELLIS's own layout, joined by commas.")],
    overrides: Annotated[
        list[str] | None, Argument(metavar="[KEY=VALUE]...", help="Keys of the data set, e.g. min_aesthetic=5.5.")
    ] = None,
    stage: Annotated[str, Option(help="ss or slat.")] = "slat",
    files: Annotated[int, whole("--files", "Objects whose files are read, to find broken ones.", 0)] = 0,
) -> None:
    """Count what TRELLIS data roots hold for a stage, and why rows are left out; exit code 1 for unreadable files."""
    from fewstep_trellis.official.inspect import inspect as run

    if not run(roots, stage, overrides or [], files, Console()):
        raise typer.Exit(1)


def teach(
    overrides: Annotated[
        list[str] | None,
        Argument(metavar="[KEY=VALUE]...", help="root, source, vae.*, flow.*, slat_vae.*, train.*, ..."),
    ] = None,
    stage: Annotated[str, Option(help=STAGES)] = "all",
    out: Annotated[Path, Option("--out", "-o", help="Folder of the models.")] = Path("runs/teach"),
    resume: Annotated[bool, Option("--resume", help="Go on where a killed run stopped.")] = False,
) -> None:
    """Train VAE and flow teacher of either stage on a prepared set, at a size for a CPU by default."""
    from fewstep_trellis.teach.command import teach as run

    run(stage, out, overrides or [], resume=resume, console=Console())


@contextmanager
def shown() -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar that appears with the first model, so that a refusal is one message and nothing else."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(TextColumn("{task.description}", markup=False), *columns)
    task = bar.add_task("models", total=None)

    def update(done: int, total: int, name: str) -> None:
        bar.start()
        bar.update(task, completed=done, total=total, description=name[:40])

    try:
        yield update
    finally:
        if bar.live.is_started:
            bar.stop()


def summary(manifest: dict[str, Any]) -> str:
    """The counts of a manifest in a line."""
    counts = manifest.get("counts", {})
    return ", ".join(f"{key} {value}" for key, value in counts.items() if not isinstance(value, dict)) or "written"
