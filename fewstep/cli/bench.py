"""``fewstep bench``: the command line of ``fewstep.bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from fewstep.cli.distill import STAGE, needed
from fewstep.cli.invocation import again, going_on
from fewstep.cli.options import integers, names, whole
from fewstep.config.base import merge, parse_override
from fewstep.console import Console, say
from fewstep.errors import FewstepError, note
from fewstep.plugins.registry import registry

KEYS = (
    "Config: backbone.*, data.*, steps, seeds, samplers, limit, against, resamples, teacher_steps, device, threads, "
    "columns; of one stage: slat.backbone.*, slat.data.*."
)


def bench(
    overrides: Annotated[list[str] | None, Argument(metavar="KEY=VALUE", help=KEYS)] = None,
    backbone: Annotated[str | None, Option("--backbone", "-b", help="The network that is measured.")] = None,
    stage: Annotated[str | None, STAGE] = None,
    dataset: Annotated[str | None, Option("--dataset", "-d", help="Data set; by default the backbone's own.")] = None,
    methods: Annotated[str | None, Option(help="Students of these methods that ship with the backbone: a,b.")] = None,
    student: Annotated[
        list[str] | None,
        Option(
            metavar="[LABEL=]PATH",
            help="A student's folder; repeatable. Several under one label, or a pattern, are its replicates.",
        ),
    ] = None,
    preset: Annotated[str | None, Option("--preset", "-p", help="Named settings that a plugin ships.")] = None,
    steps: Annotated[str | None, Option(help="Step counts; by default 1,2,4.")] = None,
    seeds: Annotated[str | None, Option(help="Seeds of the noise, for the intervals; by default 0,1,2.")] = None,
    samplers: Annotated[
        str | None, Option(help="Samplers besides each student's own: jump,gamma:0.3 (share of fresh noise).")
    ] = None,
    limit: Annotated[int | None, whole("--limit", "Use only this many held-out samples.", 2)] = None,
    device: Annotated[str | None, Option(help="auto, cpu, cuda, cuda:1; by default auto.")] = None,
    out: Annotated[Path | None, Option("--out", "-o", help="Folder of the report; must not exist.")] = None,
    resume: Annotated[bool, Option("--resume", help="Continue the bench in --out, or redraw its report.")] = False,
    report: Annotated[
        bool, Option("--report", help="Also write report.html, with charts and objects that can be rotated.")
    ] = False,
    against: Annotated[
        str | None, Option(help="Label that the others are compared with; by default the first.")
    ] = None,
    compare: Annotated[Path | None, Option(help="rows.csv of an earlier bench, to report what changed.")] = None,
) -> None:
    """Measure the quality and time of students by steps.

    The teacher and the undistilled network are always measured too. With --stage both, each stage samples on what the
    one before it decoded, in the same number of steps, and a student is a folder with one of each stage.
    """
    named = registry().get("backbone", needed("--backbone", "backbone", backbone))
    counts, noises = integers("--steps", steps, 1), integers("--seeds", seeds, 0)
    others = names("--samplers", samplers)
    wanted, folders = names("--methods", methods), [_labelled(text) for text in student or []]
    config = merge(*map(parse_override, overrides or []))

    from fewstep.benchmark import api

    console = Console()
    folder = out or api.default_folder(named.name, stage)

    def hint() -> str:
        rows = folder / "rows.csv"
        return (
            f"measured so far: {rows}; to go on: {again('--resume')}" if rows.exists() else f"to start again: {again()}"
        )

    with going_on(hint):
        try:
            table = api.bench(
                named.name,
                wanted,
                folders,
                counts,
                noises,
                samplers=others or None,
                stage=stage,
                dataset=dataset,
                preset=preset,
                limit=limit,
                device=device,
                out=folder,
                compare=compare,
                against=against,
                config=config,
                console=console,
                resume=resume,
                report=report,
            )
        except FewstepError:
            raise
        except Exception as error:  # of a plugin, or a bug of ours
            if (folder / "rows.csv").exists():
                note(error, hint())
            raise
    say(console, f"written: {table.folder}")
    table.show(console)


def _labelled(text: str) -> tuple[str | None, Path]:
    """The parts of ``LABEL=PATH`` or ``PATH``. Both may contain ``=``; text that is an existing path has no label."""
    if "=" not in text or Path(text).exists():
        return None, Path(text)
    parts = text.split("=")
    splits = [("=".join(parts[:at]).strip(), "=".join(parts[at:]).strip()) for at in range(1, len(parts))]
    splits = [(label, path) for label, path in splits if label and path]
    if not splits:
        raise FewstepError(f"--student {text!r}: accepted is PATH or LABEL=PATH")
    label, path = next(((label, path) for label, path in splits if Path(path).expanduser().exists()), splits[0])
    return label, Path(path).expanduser()  # a shell does not expand ~ after =
