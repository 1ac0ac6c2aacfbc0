"""The app: the core's commands, the shared ones, then those of plugins, which cannot break the others."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.main import get_group

import fewstep
from fewstep.cli.bench import bench
from fewstep.cli.dispatch import add_shared_commands
from fewstep.cli.distill import distill
from fewstep.cli.lists import metrics, presets, samplers, students, trackers
from fewstep.cli.plugins import plugins
from fewstep.cli.push import push
from fewstep.cli.sample import sample
from fewstep.errors import FewstepError
from fewstep.plugins.hookspecs import SHARED_COMMANDS
from fewstep.plugins.registry import Installed, Registry, call, problem, registry

LISTS = (plugins, students, presets, samplers, metrics, trackers)
IGNORE = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def new_app(help: str | None = None) -> typer.Typer:
    """A typer app with the settings that all of ours share."""
    return typer.Typer(
        help=help, no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False
    )


def build() -> Any:
    """The group of all commands. A plugin whose commands fail is reported by ``fewstep plugins``."""
    app = new_app("Few-step distillation of flow models: a slow teacher in, a one-step student out.")
    app.callback()(_root)
    for command in (distill, bench, sample, push, *LISTS):
        app.command(no_args_is_help=command not in LISTS)(command)
    group = get_group(app)
    add_shared_commands(group)
    add_plugin_commands(registry(), group)
    return group


def _version(asked: bool) -> None:
    if asked:
        print(f"fewstep {fewstep.__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    del version


def add_plugin_commands(registered: Registry, group: Any) -> None:
    """Add the commands that each plugin registers by ``register_commands``; a name that is taken is a clash."""
    shared = [command.partition(" ")[0] for command in SHARED_COMMANDS]
    owners = dict.fromkeys([*group.commands, *shared], "fewstep")
    for installed in [p for p in registered.plugins if p.error is None]:
        theirs: dict[str, Any] = {}
        error = problem(lambda p=installed, t=theirs: t.update(_commands(registered, p)))  # type: ignore[misc]
        if error:  # everything else that the plugin registered stays usable
            registered.update(installed, error=f"its commands are left out: {error}")
            continue
        registered.update(installed, commands=tuple(sorted(theirs)))
        for name, command in theirs.items():
            _add(registered, group, owners, installed, name, command)


def _commands(registered: Registry, installed: Installed) -> dict[str, Any]:
    app = new_app()
    call(registered, installed, "register_commands", app=app)
    return dict(get_group(app).commands) if app.registered_commands or app.registered_groups else {}


def _add(
    registered: Registry, group: Any, owners: dict[str, str], installed: Installed, name: str, command: Any
) -> None:
    owner = owners.setdefault(name, installed.name)
    if owner == installed.name:
        group.add_command(command, name)
        return
    text = f"command {name!r} is claimed by {owner!r} and {installed.name!r}: uninstall one of them or rename it"
    registered.command_clashes.append(text)
    if owner != "fewstep":  # our own names cannot be taken
        group.add_command(_clash(name, text), name)


def _clash(name: str, text: str) -> Any:
    app = typer.Typer(add_completion=False)

    @app.command(name, hidden=True, context_settings=IGNORE)
    def clash() -> None:
        raise FewstepError(text)

    return get_group(app).commands[name]
