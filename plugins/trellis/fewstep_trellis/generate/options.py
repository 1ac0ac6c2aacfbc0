"""The options that ``fewstep generate`` and ``app`` have for TRELLIS and for TRELLIS.2 alike. Imports no torch."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from fewstep.cli.invocation import again
from fewstep.cli.options import real, whole

Samples = Annotated[int, whole("--samples", "Objects per input.", 1, 64, "-n")]
Seed = Annotated[int, whole("--seed", "Seed of the noise.", 0, 2**31 - 1)]
Background = Annotated[str, Option(help="Background of opaque pictures: remove (needs rembg) or keep.")]
Device = Annotated[str, Option(help="auto, cpu, cuda, cuda:1, ...")]
LowMemory = Annotated[bool, Option("--low-memory", help="Hold one model at a time.")]
Graphs = Annotated[
    bool, Option("--graphs", help="Keep models on the GPU, and the structure stage as CUDA graphs: for many inputs.")
]
LargestPart = Annotated[bool, Option("--largest-part", help="Keep only the largest connected part of each object.")]
Simplify = Annotated[float, real("--simplify", "Share of the mesh's faces to remove, such as 0.9 (extra mesh).")]
Texels = Annotated[
    int,
    whole(
        "--texture", "Texels on a side of a texture in the .glb, such as 1024 (extra mesh); 0: vertex colours.", 0, 8192
    ),
]
Up = Annotated[str, Option(help="The axis that points up in the .glb, y or z.")]
Size = Annotated[float | None, real("--size", "Metres of the longest side in the .glb.")]
Preview = Annotated[bool, Option(help="Write a turntable beside the result.")]
Force = Annotated[bool, Option("--force", help="Overwrite existing results.")]
Resume = Annotated[
    bool, Option("--resume", help="Go on after an interruption: leave out inputs whose files are all there.")
]
DryRun = Annotated[bool, Option("--dry-run", help="Check files and pictures, say what would be done, and stop.")]
AsJson = Annotated[
    bool, Option("--json", help="A JSON line for each result on standard output, all else on standard error.")
]


def going_on_with(force: bool) -> str:
    """What is said when the command is interrupted; with ``--force`` it is not known which files are of this run."""
    return "finished objects stay; " + (f"to make all anew: {again()}" if force else f"to go on: {again('--resume')}")
