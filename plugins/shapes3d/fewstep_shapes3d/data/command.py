"""``fewstep data prepare sweethome3d``, ``furniture`` and ``furniture-files``. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Option

from fewstep.cli.invocation import again, going_on
from fewstep.cli.options import whole
from fewstep.console import Console, number_of, say
from fewstep.engine.progress import counting
from fewstep.errors import need
from fewstep_shapes3d.data import SWEETHOME3D

Views = Annotated[int, whole("--views", "Pictures per object.", 1, 64)]
Like = Annotated[
    Path | None, Option(help="Prepared set to join with, for resolution and picture tokens. Default: the shipped one.")
]
Workers = Annotated[int, whole("--workers", "Processes.", 1, 256)]
Device = Annotated[str, Option(help="Where pictures are encoded: auto, cpu, cuda, cuda:1, ...")]


def prepare(
    source: Annotated[list[Path], Option("--source", "-s", help="Folder of .sh3f files, or one file; repeatable.")],
    out: Annotated[Path, Option("--out", "-o", help="Folder to make; must not exist.")],
    resolution: Annotated[int, whole("--resolution", "Voxels on a side, an even number.", 2, 256)] = 32,
    views: Views = 2,
    channels: Annotated[
        int, whole("--channels", "Channels of a token besides its position, four of them colours.", 5, 1284)
    ] = 52,
    seed: Annotated[int, whole("--seed", "Seed of cameras and split.", 0, 2**31 - 1)] = 0,
    test_clusters: Annotated[int, whole("--test-clusters", "Clusters of near-duplicates kept for testing.", 1)] = 96,
    limit: Annotated[int | None, whole("--limit", "Read only this many models, for a trial.", 2)] = None,
    workers: Workers = 2,
    device: Device = "auto",
) -> None:
    """Read furniture catalogues, voxelise, render, encode and split them into a prepared set."""
    need("open3d")  # before the imports below, which need [trellis] only: [data] brings both
    from fewstep_shapes3d.data.prepare import prepare_sweethome3d

    console = Console()
    with counting(console) as progress:
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
    say(console, f"{out}: {summary(manifest)}")


def furniture(
    out: Annotated[Path, Option("--out", "-o", help="Folder to make; must not exist.")],
    pieces: Annotated[int, whole("--pieces", "Training objects.", 1)] = 2000,
    held_out: Annotated[int, whole("--held-out", "Test objects, and as many validation objects.", 2)] = 96,
    views: Views = 2,
    seed: Annotated[int, whole("--seed", "Seed of pieces and cameras.", 0, 2**31 - 1)] = 0,
    like: Like = None,
    workers: Workers = 2,
    device: Device = "auto",
) -> None:
    """Make procedural furniture (chairs, tables, shelves, ...), voxelise, render and encode it into a prepared set."""
    need("open3d")
    from fewstep_shapes3d.data.pieces import prepare_furniture

    console = Console()
    with going_on(lambda: f"to go on: {again()}"), counting(console) as progress:
        manifest = prepare_furniture(
            out,
            pieces=pieces,
            held_out=held_out,
            views=views,
            seed=seed,
            like=like or SWEETHOME3D,
            workers=workers,
            device=device,
            progress=progress,
        )
    say(console, f"{out}: {summary(manifest)}")


def pieces(
    out: Annotated[Path, Option("--out", "-o", help="Folder to make; must not exist.")],
    count: Annotated[int, whole("--count", "Pieces.", 1)] = 16,
    seed: Annotated[int, whole("--seed", "Seed of pieces and cameras.", 0, 2**31 - 1)] = 0,
) -> None:
    """Write procedural furniture as files, meshes/*.glb and pictures/*.png: the test objects of a furniture set."""
    need("open3d")
    from fewstep_shapes3d.furniture.files import write_pieces

    console = Console()
    with counting(console) as progress:
        write_pieces(out, count, seed, progress)
    say(console, f"{out}: {number_of(count, 'piece')}, as meshes/*.glb and pictures/*.png")


def summary(manifest: dict[str, Any]) -> str:
    """The counts of a manifest in one line."""
    counts = manifest.get("counts", {})
    return ", ".join(f"{key} {value}" for key, value in counts.items() if not isinstance(value, dict)) or "written"
