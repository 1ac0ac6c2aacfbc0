"""``fewstep distill``: one teacher, one method, one student."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from typer import Argument, Option

from fewstep.describe import describe, toml
from fewstep.errors import FewstepError
from fewstep.registry import registry

if TYPE_CHECKING:
    from fewstep.run import Resolved


def distill(
    overrides: Annotated[
        list[str] | None, Argument(metavar="[KEY=VALUE]...", help="Config, e.g. train.steps=400.")
    ] = None,
    method: Annotated[str | None, Option("--method", "-m", help="Distillation method; see fewstep plugins.")] = None,
    backbone: Annotated[str | None, Option("--backbone", "-b", help="Whose teacher is distilled.")] = None,
    dataset: Annotated[str | None, Option("--dataset", "-d", help="Data set; by default the backbone's own.")] = None,
    preset: Annotated[str | None, Option("--preset", "-p", help="Named settings that a plugin ships.")] = None,
    config: Annotated[Path | None, Option("--config", "-c", help="TOML file of config keys.")] = None,
    out: Annotated[Path | None, Option("--out", "-o", help="Folder of the run; new, unless --resume.")] = None,
    resume: Annotated[bool, Option("--resume", help="Go on with the run in --out from its checkpoint.")] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="Print the resolved config and start nothing.")] = False,
    help_config: Annotated[bool, Option("--help-config", help="List every config key of this choice.")] = False,
    tracker: Annotated[list[str] | None, Option(help="Where numbers go beside metrics.jsonl; repeatable.")] = None,
) -> None:
    """Distill a teacher into a few-step student.

    Later wins: defaults, --preset, --config, KEY=VALUE.
    """
    from fewstep import run

    console = Console()
    method, backbone = needed("--method", "objective", method), needed("--backbone", "backbone", backbone)
    if help_config:
        show_keys(console, method, backbone, dataset)
        return
    resolved = run.resolve(method, backbone, preset, config, overrides or [], dataset)
    if dry_run:
        show_config(console, resolved)
    else:
        _start(resolved, out, resume, tracker or [], console)


def needed(option: str, kind: str, value: str | None) -> str:
    """The value. Raises FewstepError, with the registered names, where it is missing."""
    if value is None:
        names = ", ".join(registry().names(kind)) or "nothing is registered"
        raise FewstepError(f"{option}: missing; accepted: {names}")
    return value


def show_keys(console: Console, method: str, backbone: str, dataset: str | None) -> None:
    """Every key with what it accepts, its default and its meaning."""
    from fewstep import run

    model = run.model_of(*run.pick(method, backbone, dataset))
    table = Table("key", "accepted", "default", "meaning", title="config keys", title_justify="left")
    for row in describe(model):
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def show_config(console: Console, resolved: Resolved) -> None:
    """The resolved config with sources, and the versions."""
    table = Table("key", Column("value", overflow="fold"), "from", title="resolved config (nothing was started)")
    chosen = {"method": resolved.method, "backbone": resolved.backbone, "dataset": resolved.dataset}
    for key, entry in chosen.items():
        table.add_row(key, Text(entry.name), Text(f"plugin {entry.plugin}"))
    for key, value, source in resolved.rows():
        table.add_row(Text(key), Text(toml(value)), Text(source))
    console.print(table)
    console.print(Text(", ".join(f"{name} {version}" for name, version in resolved.versions().items())), soft_wrap=True)


def _start(resolved: Resolved, out: Path | None, resume: bool, trackers: list[str], console: Console) -> None:
    from fewstep import run

    folder = out or resolved.folder
    try:
        run.start(resolved, folder, resume, console, trackers=trackers, command=sys.argv)
    except KeyboardInterrupt:
        print(f"interrupted; to go on: {_resuming(sys.argv[1:], folder)}", file=sys.stderr)
        raise typer.Exit(130) from None
    console.print(Text(f"student: {folder / 'student'}\nnext: fewstep sample {folder}"), soft_wrap=True)


def _resuming(arguments: list[str], folder: Path) -> str:
    """The command that continues this run."""
    words = [word for word in arguments if word != "--resume"]
    if not {"--out", "-o"} & {word.partition("=")[0] for word in words}:
        words += ["--out", str(folder)]
    return shlex.join(["fewstep", *words, "--resume"])
