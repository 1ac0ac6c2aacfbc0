"""``fewstep generate``, ``fewstep app`` and ``fewstep export`` as commands. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from fewstep_shapes3d.app.options import HOST, OPEN, PORT
from typer import Argument, Option

from fewstep.cli.invocation import going_on
from fewstep.cli.options import home
from fewstep.console import Console
from fewstep_trellis.generate import options as opt

TEACHER = "Pipeline folder or hub name (microsoft/TRELLIS-image-large); by default the shipped nano model."
STUDENT = (
    "Student in place of a flow: folder of fewstep distill (or one with ss/ and slat/), checkpoint, weights file, hub "
    "file, shipped name; repeatable. none: never a student."
)
STEPS = "Steps: N, or N,M for structure and latents; by default as the contract or pipeline.json says."
GUIDANCE = "Guidance scale, one or one per stage; 1 is none (TRELLIS's cfg_strength + 1)."


def generate(
    inputs: Annotated[list[str] | None, Argument(help="Pictures, folders of pictures, or texts.")] = None,
    text: Annotated[list[str] | None, Option("--text", help="A text, for text pipelines; repeatable.")] = None,
    out: Annotated[str, Option("--out", "-o", help="File (.glb, .ply, .npz, .rf.npz) or folder.")] = "generated",
    formats: Annotated[str | None, Option(help="glb, ply, npz, rf with commas; by default --out's, or glb.")] = None,
    steps: Annotated[str | None, Option(help=STEPS)] = None,
    teacher: Annotated[str | None, Option(help=TEACHER)] = None,
    student: Annotated[list[str] | None, Option("--student", help=STUDENT)] = None,
    guidance: Annotated[str | None, Option(help=GUIDANCE)] = None,
    sampler: Annotated[str | None, Option(help="Registered sampler, for both stages.")] = None,
    samples: opt.Samples = 1,
    seed: opt.Seed = 42,
    multi_image: Annotated[
        str | None, Option(help="All pictures show one object: stochastic or multidiffusion.")
    ] = None,
    encoder: Annotated[
        str | None, Option("--image-encoder", "--text-encoder", help="Encoder's name, folder or weights file.")
    ] = None,
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
    """Make 3-D objects from pictures or texts: a mesh (.glb), Gaussians (.ply), arrays (.npz)."""
    from fewstep_shapes3d.finish import Finish

    from fewstep_trellis.generate import command
    from fewstep_trellis.generate.api import Options
    from fewstep_trellis.generate.models import models_of

    models = models_of(home(teacher), [home(one) for one in student or []], steps, guidance, sampler)
    how = multi_image, background, device, low_memory, home(encoder), largest_part, graphs
    options = Options(samples, seed, *how, Finish(simplify, texture, up, size))
    output = command.Output(home(out), formats, preview, force, as_json, resume)
    run = command.Run(models, options, output, Console(stderr=as_json), Console(stderr=True))
    places = [home(one) for one in inputs or []]
    with going_on(lambda: opt.going_on_with(force)):
        raise typer.Exit(run.dry(places, text or []) if dry_run else run(places, text or []))


def app(
    student: Annotated[
        list[str] | None, Option("--student", help=f"{STUDENT.partition(' none:')[0]} Beside the shipped ones.")
    ] = None,
    teacher: Annotated[str | None, Option(help=TEACHER)] = None,
    host: Annotated[str, HOST] = "127.0.0.1",
    port: Annotated[int, PORT] = 7860,
    encoder: Annotated[str | None, Option("--image-encoder", help="Encoder's name, folder or weights file.")] = None,
    device: opt.Device = "auto",
    low_memory: opt.LowMemory = False,
    show: Annotated[bool, OPEN] = True,
) -> None:
    """Serve a page: pictures become 3-D objects, students are compared side by side."""
    from fewstep_shapes3d.app.run import run

    from fewstep_trellis.generate.api import Options
    from fewstep_trellis.generate.page import TrellisMaker

    options = Options(device=device, low_memory=low_memory, encoder=home(encoder))
    maker = TrellisMaker(home(teacher), [home(one) for one in student or []], options)
    run(maker, host, port, Console(), show=show)


def export(
    student: Annotated[list[str], Argument(help="Students, as of fewstep generate --student.")],
    out: Annotated[str, Option("--out", "-o", help="Folder to make; must not exist.")],
    teacher: Annotated[str | None, Option(help=TEACHER)] = None,
    steps: Annotated[str | None, Option(help=STEPS)] = None,
    guidance: Annotated[str | None, Option(help=GUIDANCE)] = None,
    half: Annotated[bool, Option("--half", help="Store the students in half precision.")] = False,
) -> None:
    """Write a pipeline folder that TRELLIS itself loads, with students in place of its flows."""
    from fewstep_trellis.generate.command import export as run
    from fewstep_trellis.generate.models import models_of

    run(
        models_of(home(teacher), [home(one) for one in student], steps, guidance),
        Path(home(out)),
        Console(),
        Console(stderr=True),
        half=half,
    )
