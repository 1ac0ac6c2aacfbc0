"""``fewstep score``. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

from typer import Argument, Option

from fewstep.cli.invocation import going_on
from fewstep.cli.options import DEVICE, names, whole
from fewstep.console import Console, say
from fewstep.engine.progress import counting
from fewstep.errors import FewstepError, invalid, unknown

UP = "Axis that points up in {} meshes: y, z, or auto: y in glTF and OBJ, z in the others."


def score(
    folders: Annotated[
        list[str],
        Argument(
            metavar="GENERATED... TRUE",
            help="Folders of generated meshes or Gaussians, NAME=DIR to name them, then the folder of the true ones.",
        ),
    ],
    out: Annotated[Path, Option("--out", "-o", help="Folder of the report; it keeps what was measured.")] = Path(
        "score"
    ),
    align: Annotated[str, Option(help="Alignments.")] = "unaligned,rigid,similarity",
    points: Annotated[int, whole("--points", "Points on each surface.", 500, 1_000_000)] = 10_000,
    thresholds: Annotated[str, Option(help="Thresholds of the F-score, in sides of the cube.")] = "0.01,0.02,0.05",
    frame: Annotated[
        str, Option(help="Box scaled to the cube: own (each object's) or true (the true object's).")
    ] = "own",
    up: Annotated[str, Option(help=UP.format("generated"))] = "auto",
    true_up: Annotated[str, Option(help=UP.format("true"))] = "auto",
    missing: Annotated[str, Option(help="True objects that no folder has: count (as failed) or leave-out.")] = "count",
    views: Annotated[bool, Option(help="Render views and compare their features.")] = True,
    inception: Annotated[Path | None, Option(help="FID's Inception-v3: the file inception-2015-12-05.pt.")] = None,
    dinov2: Annotated[Path | None, Option(help="Folder with DINOv2, as on Hugging Face.")] = None,
    seed: Annotated[int, whole("--seed", "Seed of the points.", 0, 2**31 - 1)] = 0,
    resamples: Annotated[int, whole("--resamples", "Resamples of the objects, for intervals.", 100)] = 1000,
    workers: Annotated[int, whole("--workers", "Processes.", 1, 256)] = 2,
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Score folders of generated meshes or Gaussians against a folder of true ones, paired by file name."""
    if len(folders) < 2:
        raise FewstepError(f"score: got one folder, {folders[0]}; accepted: GENERATED... TRUE, the true objects last")
    from fewstep_shapes3d.score.run import score as run

    console = Console()
    settings: dict[str, Any] = {"points": points, "seed": seed, "resamples": resamples, "views": views}
    settings |= {"frame": frame, "up": up, "true_up": true_up, "missing": missing}
    with going_on(lambda: "to go on: the same command again"), counting(console) as progress:
        scores = run(
            folders[:-1],
            folders[-1],
            out=out,
            inception=inception,
            dinov2=dinov2,
            workers=workers,
            device=device,
            progress=progress,
            align=_alignments(align),
            thresholds=_numbers("--thresholds", thresholds),
            **settings,
        )
    scores.show(console)
    say(console, f"wrote {out / 'report.html'}, objects.csv, summary.csv, scores.json")


def _alignments(text: str) -> list[str]:
    from fewstep_shapes3d.score.settings import Alignment

    found = names("--align", text)
    for name in found:
        if name not in get_args(Alignment):
            raise unknown("--align", name, get_args(Alignment))
    return found


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in names(option, text)]
    except ValueError:
        raise invalid(option, text, "numbers separated by commas, for example 0.01,0.02") from None
