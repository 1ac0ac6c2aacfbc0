"""``fewstep distill``: one teacher, one method, one student."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from fewstep.cli.invocation import again, going_on, words
from fewstep.cli.options import DEVICE
from fewstep.config.describe import describe
from fewstep.config.describe import toml as typed
from fewstep.config.stages import chosen
from fewstep.console import Console, command, listing, say, spinner
from fewstep.errors import FewstepError, first_line
from fewstep.plugins.registry import registry

if TYPE_CHECKING:
    from fewstep.config.run import Resolved

STAGE = Option(
    "--stage",
    help="A stage of the backbone's model, or both; by default the stage of the backbone that is named.",
)
Overrides = Annotated[
    list[str] | None,
    Argument(metavar="KEY=VALUE", help="Config, e.g. train.steps=400; of one stage: slat.train.steps=400."),
]
DataSet = Annotated[str | None, Option("--dataset", "-d", help="Data set; by default the backbone's own.")]
Preset = Annotated[str | None, Option("--preset", "-p", help="Named settings that a plugin ships.")]
Config = Annotated[Path | None, Option("--config", "-c", help="TOML file of config keys, or a run.")]
Out = Annotated[Path | None, Option("--out", "-o", help="Folder of the run; new, unless --resume.")]
Resume = Annotated[
    bool, Option("--resume", help="Continue the run in --out with its own config: --resume --out RUN is enough.")
]
DryRun = Annotated[
    bool, Option("--dry-run", help="Print the resolved config, check the files that it names, and start nothing.")
]
Room = Annotated[
    str | None,
    Option(
        "--memory", help="With --dry-run: expected memory, and whether it fits into a size (24GB) or device (auto)."
    ),
]
Toml = Annotated[bool, Option("--toml", help="With --dry-run: print a TOML file that --config takes.")]
HelpConfig = Annotated[bool, Option("--help-config", help="List every config key of this method and backbone.")]
Trackers = Annotated[list[str] | None, Option(help="Registered tracker besides metrics.jsonl; repeatable.")]


def distill(
    overrides: Overrides = None,
    method: Annotated[str | None, Option("--method", "-m", help="Distillation method; see fewstep plugins.")] = None,
    backbone: Annotated[str | None, Option("--backbone", "-b", help="Network whose teacher is distilled.")] = None,
    stage: Annotated[str | None, STAGE] = None,
    dataset: DataSet = None,
    preset: Preset = None,
    config: Config = None,
    out: Out = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    memory: Room = None,
    toml: Toml = False,
    help_config: HelpConfig = False,
    tracker: Trackers = None,
    device: Annotated[str | None, DEVICE] = None,
) -> None:
    """Distil a teacher into a few-step student.

    Later values win, in this order: defaults, --preset, --config, KEY=VALUE.
    """
    from fewstep.config.recorded import Words
    from fewstep.config.resolve import resolve_run
    from fewstep.config.written import as_toml
    from fewstep.engine.inputs import check_inputs

    console, keys = Console(), overrides or []
    if help_config:
        method, backbone = needed("--method", "objective", method), needed("--backbone", "backbone", backbone)
        show_keys(console, method, backbone, stage, dataset)
        return
    if resume and out is None and keys and "=" not in keys[0]:  # --resume RUN
        out, keys = Path(keys[0]), keys[1:]
    if resume and out is None and None in (method, backbone):
        raise FewstepError("--resume: which run? accepted: --resume --out RUN")
    layers: list[Any] = [*([config] if config is not None else []), *keys]
    if device is not None:
        layers.append(f"train.device={device}")
    resolved = resolve_run(Words(method, backbone, stage, dataset, preset), layers, out if resume else None)
    if toml:
        say(console, as_toml(resolved).rstrip())
    elif dry_run:
        for name, run in resolved.items():
            show_config(console, run, name if len(resolved) > 1 else "")
            if memory is not None:
                show_memory(console, run, memory)
        for run in resolved.values():
            check_inputs(run, teacher=memory is None)
    else:
        _start(resolved, out, resume, tracker or [], console)


def needed(option: str, kind: str, value: str | None) -> str:
    """The value of a required option. Raises FewstepError, with the registered names, if it is missing."""
    if value is None:
        names = ", ".join(registry().names(kind)) or "nothing is registered"
        raise FewstepError(f"{option}: missing; accepted: {names}")
    return value


def show_keys(console: Console, method: str, backbone: str, stage: str | None, dataset: str | None) -> None:
    """Print every key with what it accepts, its default and its meaning."""
    from fewstep.config.resolve import pick
    from fewstep.config.run import model_of

    running = chosen(registry().get("backbone", backbone), stage)
    for name, network in running.items():
        title = "config keys" + (f" of stage {name}" if len(running) > 1 else "")
        table = listing("key", "accepted", "default", "meaning", title=title)
        for row in describe(model_of(*pick(method, network.name, dataset))):
            table.add_row(*row)
        console.print(table)


def show_config(console: Console, resolved: Resolved, stage: str = "") -> None:
    """Print the resolved config with sources, and the versions."""
    from fewstep.config.run import versions

    title = f"resolved config{f' of stage {stage}' if stage else ''} (nothing was started)"
    table = listing("key", "value", "from", title=title)
    entries = {"method": resolved.method, "backbone": resolved.backbone, "dataset": resolved.dataset}
    for key, entry in entries.items():
        table.add_row(key, entry.name, f"plugin {entry.plugin}")
    for key, value, source in resolved.rows():
        table.add_row(key, typed(value), source)
    console.print(table)
    say(console, ", ".join(f"{name} {version}" for name, version in versions().items()))


def show_memory(console: Console, resolved: Resolved, given: str) -> None:
    """Print the expected memory by part, and whether it fits."""
    from fewstep.engine.device import pick_device
    from fewstep.engine.memory import GB, expected, room

    device = pick_device(resolved.config.train.device)
    there, kind = room(given, device), device.type if given == "auto" else "cuda"
    try:
        with spinner(console, "counting memory"):
            memory = expected(resolved, kind)
    except Exception as error:  # also a plugin's: a dry run shows the config in any case
        say(console, f"expected memory: not known: {first_line(error)}")
        return
    table = listing("part", "GB", title="expected memory of one process")
    for part, size in {**memory.parts, **memory.passes}.items():
        table.add_row(part, f"{size / GB:.3f}")
    if memory.copies:
        table.add_row("copy for a checkpoint", f"{memory.copies / GB:.3f}")
    table.add_row("at most together", f"{memory.total / GB:.3f}")
    console.print(table)
    verdict = "fits into" if memory.fits(there, kind) else "does not fit into"
    say(console, f"{verdict} {there / GB:.1f} GB ({'; '.join(memory.notes)}; batch {resolved.config.train.batch_size})")


def _start(
    resolved: Mapping[str, Resolved], out: Path | None, resume: bool, trackers: list[str], console: Console
) -> None:
    from fewstep.api.distillation import run_resolved

    folder = out or next(iter(resolved.values())).folder

    def hint() -> str:
        return f"to go on: {again('--resume')}" if folder.exists() else f"to start again: {again()}"

    with going_on(hint):
        run = run_resolved(resolved, folder, resume, console, trackers=trackers, command=words())
    for stage, made in zip(resolved.values(), run.folders.values(), strict=True):
        if stage.method.load().teaches:
            words_next = ("--backbone", stage.backbone.name, f"backbone.teacher={made}")
            say(console, f"teacher: {made}\nnext: {command('fewstep', 'distill', '--method', 'NAME', *words_next)}")
        else:
            say(console, f"student: {made / 'student'}\nnext: {command('fewstep', 'sample', made)}")
