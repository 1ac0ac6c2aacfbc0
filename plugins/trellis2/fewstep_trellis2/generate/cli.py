"""``fewstep generate``, ``app`` and ``export`` with ``--backbone trellis2`` as commands. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from fewstep_shapes3d.app.options import HOST, OPEN, PORT
from fewstep_trellis.generate import options as opt
from typer import Argument, Option

from fewstep.cli.invocation import going_on
from fewstep.cli.options import home
from fewstep.console import Console

TEACHER = "Pipeline folder or hub name; by default microsoft/TRELLIS.2-4B."
STUDENT = (
    "Student in place of a flow: folder of fewstep distill, a folder of them (structure/, shape/, shape-1024/, "
    "texture/), or STAGE=CHECKPOINT; repeatable. none: never a student."
)
STEPS = "Steps: N, or N,M,K for structure, shape and texture; by default as the contract or pipeline.json says."
GUIDANCE = "Guidance scale, one or one per stage; 1 is none."
TYPE = "512, 1024, 1024_cascade or 1536_cascade; by default as pipeline.json says."


def generate(
    inputs: Annotated[list[str] | None, Argument(help="Pictures, or folders of pictures.")] = None,
    out: Annotated[str, Option("--out", "-o", help="File (.glb, .npz) or folder.")] = "generated",
    formats: Annotated[str | None, Option(help="glb, npz with commas; by default --out's, or glb.")] = None,
    steps: Annotated[str | None, Option(help=STEPS)] = None,
    teacher: Annotated[str | None, Option(help=TEACHER)] = None,
    student: Annotated[list[str] | None, Option("--student", help=STUDENT)] = None,
    kind: Annotated[str | None, Option("--type", help=TYPE)] = None,
    mesh: Annotated[str | None, Option(help="Mesh file to texture as the picture shows; no object is made.")] = None,
    guidance: Annotated[str | None, Option(help=GUIDANCE)] = None,
    sampler: Annotated[str | None, Option(help="Registered sampler, for all stages.")] = None,
    samples: opt.Samples = 1,
    seed: opt.Seed = 42,
    encoder: Annotated[str | None, Option("--image-encoder", help="DINOv3's name on the hub, or a folder.")] = None,
    background: opt.Background = "remove",
    device: opt.Device = "auto",
    low_memory: opt.LowMemory = False,
    graphs: opt.Graphs = False,
    largest_part: opt.LargestPart = False,
    simplify: opt.Simplify = 0.0,
    texture: opt.Texels = 0,
    up: opt.Up = "y",
    size: opt.Size = None,
    preview: opt.Preview = True,
    force: opt.Force = False,
    resume: opt.Resume = False,
    dry_run: opt.DryRun = False,
    as_json: opt.AsJson = False,
) -> None:
    """Make textured meshes (.glb) from pictures with TRELLIS.2."""
    from fewstep_shapes3d.finish import Finish
    from fewstep_trellis.generate.api import Options
    from fewstep_trellis.generate.command import Output

    from fewstep_trellis2.generate import command
    from fewstep_trellis2.generate.models import models_of

    students = [_home(one) for one in student or []]
    models = models_of(home(teacher), students, steps, guidance, sampler, kind, home(mesh))
    how = None, background, device, low_memory, home(encoder), largest_part, graphs
    options = Options(samples, seed, *how, Finish(simplify, texture, up, size))
    run = command.Run(
        models,
        options,
        Output(home(out), formats, preview, force, as_json, resume),
        Console(stderr=as_json),
        Console(stderr=True),
    )
    places = [home(one) for one in inputs or []]
    with going_on(lambda: opt.going_on_with(force)):
        raise typer.Exit(run.dry(places, []) if dry_run else run(places, []))


def app(
    student: Annotated[list[str] | None, Option("--student", help=STUDENT.partition(" none:")[0])] = None,
    teacher: Annotated[str | None, Option(help=TEACHER)] = None,
    kind: Annotated[str | None, Option("--type", help=TYPE)] = None,
    host: Annotated[str, HOST] = "127.0.0.1",
    port: Annotated[int, PORT] = 7860,
    encoder: Annotated[str | None, Option("--image-encoder", help="DINOv3's name on the hub, or a folder.")] = None,
    device: opt.Device = "auto",
    low_memory: opt.LowMemory = False,
    show: Annotated[bool, OPEN] = True,
) -> None:
    """Serve a page: pictures become textured meshes, students are compared side by side."""
    from fewstep_shapes3d.app.run import run
    from fewstep_trellis.generate.api import Options

    from fewstep_trellis2.generate.page import Trellis2Maker

    options = Options(device=device, low_memory=low_memory, encoder=home(encoder))
    maker = Trellis2Maker(home(teacher), [_home(one) for one in student or []], options, kind)
    run(maker, host, port, Console(), show=show)


def export(
    student: Annotated[list[str], Argument(help="Students, as of fewstep generate --student.")],
    out: Annotated[str, Option("--out", "-o", help="Folder to make; must not exist.")],
    teacher: Annotated[str | None, Option(help=TEACHER)] = None,
    kind: Annotated[str | None, Option("--type", help=TYPE)] = None,
    steps: Annotated[str | None, Option(help=STEPS)] = None,
    guidance: Annotated[str | None, Option(help=GUIDANCE)] = None,
    half: Annotated[bool, Option("--half", help="Store the students in bfloat16.")] = False,
) -> None:
    """Write a pipeline folder that TRELLIS.2 itself loads, with students in place of its flows."""
    from fewstep_trellis2.generate.command import export as run
    from fewstep_trellis2.generate.models import models_of

    models = models_of(home(teacher), [_home(one) for one in student], steps, guidance, kind=kind)
    run(models, Path(home(out)), Console(), Console(stderr=True), half=half)


def _home(student: str) -> str:
    """Expands ~ in ``STAGE=~/FILE`` too."""
    stage, equals, place = student.rpartition("=")
    return f"{stage}{equals}{home(place)}"
