"""``fewstep data prepare meshes``: a prepared set, or a data root in TRELLIS's own layout. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

from fewstep_shapes3d.data import SWEETHOME3D
from fewstep_shapes3d.data.command import Device, Like, Workers, summary
from typer import Option

from fewstep.cli.invocation import going_on
from fewstep.cli.options import whole
from fewstep.console import Console, say
from fewstep.engine.progress import counting
from fewstep.errors import invalid, need, unknown

VIEWS = {False: 2, True: 24}  # pictures of an object, by --official
STAGES = ("ss", "both")
ENCODERS = (
    "With --official: folder or hub repository of TRELLIS's encoders. none: everything but latents. "
    "Default: microsoft/TRELLIS-image-large."
)


def meshes(
    source: Annotated[list[Path], Option("--source", "-s", help="Folder of mesh files, or one file; repeatable.")],
    out: Annotated[Path, Option("--out", "-o", help="Folder to make.")],
    up: Annotated[str, Option(help="Axis that points up: y, z, or auto: y in glTF and OBJ, z in the others.")] = "auto",
    views: Annotated[
        int | None, whole("--views", "Condition pictures of each object. Default: 2, or 24 with --official.", 1, 999)
    ] = None,
    seed: Annotated[int, whole("--seed", "Seed of cameras and split.", 0, 2**31 - 1)] = 0,
    test_clusters: Annotated[
        int | None,
        whole("--test-clusters", "Clusters of near-duplicates kept for testing. Default: 96, at most a quarter.", 1),
    ] = None,
    limit: Annotated[int | None, whole("--limit", "Read only this many files, for a trial.", 2)] = None,
    like: Like = None,
    official: Annotated[
        bool, Option("--official", help="Write TRELLIS's own layout: metadata.csv and folders.")
    ] = False,
    stage: Annotated[
        str | None,
        Option(help="With --official: latents of ss, or of both stages (default; 150 more pictures per object)."),
    ] = None,
    encoders: Annotated[str | None, Option(help=ENCODERS)] = None,
    image_encoder: Annotated[
        str | None, Option(help="With --official: DINOv2 for the second stage. Default: dinov2_vitl14_reg.")
    ] = None,
    workers: Workers = 2,
    device: Device = "auto",
) -> None:
    """Read folders of .glb, .gltf, .obj, .stl, .ply and .off files into a prepared set, or TRELLIS's own layout."""
    other: dict[str, object] = (
        {"--test-clusters": test_clusters, "--like": like}
        if official
        else {"--stage": stage, "--encoders": encoders, "--image-encoder": image_encoder}
    )
    for name, value in other.items():
        if value is not None:
            raise invalid(name, str(value), f"nothing {'with' if official else 'without'} --official")
    if stage is not None and stage not in STAGES:
        raise unknown("--stage", stage, STAGES)
    need("open3d")
    console = Console()
    shared: dict[str, Any] = {"up": cast(Any, up), "limit": limit, "workers": workers, "device": device}
    count = views or VIEWS[official]
    with going_on(lambda: "to go on: the same command again"), counting(console) as progress:
        if official:
            from fewstep_trellis.official.config import IMAGE_ENCODER
            from fewstep_trellis.prepare.latents import PUBLISHED
            from fewstep_trellis.prepare.objects import Pictures
            from fewstep_trellis.prepare.run import prepare_official

            both = stage != "ss"
            pictures = Pictures(count, seed=seed) if both else Pictures(count, features=0, seed=seed)
            manifest = prepare_official(
                source,
                out,
                encoders=encoders or PUBLISHED,
                image_encoder=(image_encoder or IMAGE_ENCODER) if both else "",
                pictures=pictures,
                progress=progress,
                **shared,
            )
        else:
            from fewstep_shapes3d.data.prepare import prepare_meshes

            manifest = prepare_meshes(
                source,
                out,
                views=count,
                seed=seed,
                test_clusters=test_clusters,
                like=like or SWEETHOME3D,
                progress=progress,
                **shared,
            )
    say(console, f"{out}: {summary(manifest)}")
