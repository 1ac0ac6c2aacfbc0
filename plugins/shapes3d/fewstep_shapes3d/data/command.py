"""``fewstep data prepare sweethome3d``. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from typer import Option

from fewstep.cli.options import whole
from fewstep.errors import need


def prepare(
    source: Annotated[list[Path], Option("--source", "-s", help="Folder of .sh3f files, or one file; repeatable.")],
    out: Annotated[Path, Option("--out", "-o", help="Folder to make; must not exist.")],
    resolution: Annotated[int, whole("--resolution", "Voxels on a side, an even number.", 2, 256)] = 32,
    views: Annotated[int, whole("--views", "Pictures of each object.", 1, 64)] = 2,
    channels: Annotated[int, whole("--channels", "Width of the picture tokens.", 1, 1280)] = 48,
    seed: Annotated[int, whole("--seed", "Seed of cameras and split.", 0, 2**31 - 1)] = 0,
    test_clusters: Annotated[int, whole("--test-clusters", "Clusters of near-duplicates kept for testing.", 1)] = 96,
    limit: Annotated[int | None, whole("--limit", "Read so many models only, to try it out.", 2)] = None,
    workers: Annotated[int, whole("--workers", "Processes.", 1, 256)] = 2,
    device: Annotated[str, Option(help="Where pictures are encoded: auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Read furniture catalogues, voxelise, render, encode and split them into a prepared set."""
    need("open3d")  # before the imports below, which need [trellis] only: [data] brings both
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
            device=device,
            progress=progress,
        )
    Console().print(Text(f"{out}: {summary(manifest)}"), soft_wrap=True)


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
