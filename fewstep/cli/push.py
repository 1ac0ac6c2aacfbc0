"""``fewstep push``: the command line of ``fewstep.push``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from fewstep.cli.options import home
from fewstep.console import Console, say


def push(
    student: Annotated[str, Argument(help="A run's folder, or a student's.")],
    repository: Annotated[str, Argument(help="OWNER/NAME on the hub; created there if it does not exist.")],
    out: Annotated[Path | None, Option("--out", "-o", help="Folder to write; by default runs/hub/OWNER/NAME.")] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Write the folder and upload nothing.")] = False,
    bench: Annotated[Path | None, Option(help="A bench's folder, whose table and pictures go into the card.")] = None,
    teacher: Annotated[
        str | None, Option(help="OWNER/NAME of the model that was distilled, for the card's base_model.")
    ] = None,
    license: Annotated[str | None, Option(help="Licence identifier of the hub: mit, apache-2.0, ...")] = None,
    private: Annotated[bool, Option("--private", help="Make a new repository private.")] = False,
    force: Annotated[bool, Option("--force", help="Replace a folder that exists.")] = False,
) -> None:
    """Upload a student to the Hugging Face hub, with a model card.

    Needs the extra trellis (huggingface_hub), and `hf auth login` once. The card, README.md of the folder, says how to
    sample the student and how it was made, and shows its contract and what a bench measured.
    """
    from fewstep.api.push import push as run
    from fewstep.engine.hub import upload_command

    console = Console()
    place = run(
        home(student),
        repository,
        out=out,
        dry_run=dry_run,
        bench=bench,
        teacher=teacher,
        license=license,
        private=private,
        force=force,
    )
    say(console, f"folder: {place}")
    if dry_run:
        say(console, f"nothing was uploaded; to upload it: {upload_command(place, repository)}")
    else:
        say(console, f"uploaded: https://huggingface.co/{repository}")
