"""Shared commands on the command line: ``fewstep generate --backbone NAME`` runs that backbone's implementation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from fewstep.errors import unknown
from fewstep.plugins.hookspecs import ANY, SHARED_COMMANDS
from fewstep.plugins.registry import Entry
from fewstep.plugins.shared import choose, implementations

BY_KIND = ("data prepare",)  # chosen by the kind of source, not by backbone
OPTION, SHORT = "--backbone", "-b"
RUNS_WITHOUT_ARGUMENTS = ("app", "teach")
DATA = "Prepare and inspect data sets."


class Deferred(TyperCommand):
    """A command that is built when it is called, from its arguments.

    Args:
        name: of the command.
        summary: its line in the help of the group.
        build: makes the command that parses and runs the arguments.
    """

    def __init__(self, name: str, summary: str, build: Callable[[Sequence[str]], Any]) -> None:
        super().__init__(name, help=summary)
        self.build = build

    def make_context(self, info_name: Any, args: Any, parent: Any = None, **extra: Any) -> Any:
        """The context of the real command, so that parsing, help and errors are its own."""
        return self.build(args).make_context(info_name, args, parent, **extra)


class Kinds(TyperGroup):
    """The kinds of source that ``fewstep data prepare`` reads, as commands."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this kind of source. Raises FewstepError for one that no plugin reads."""
        if cmd_name not in self.commands:
            raise unknown("kind of source", cmd_name, self.commands)
        return super().get_command(ctx, cmd_name)


def add_shared_commands(group: Any) -> None:
    """Add every shared command that some plugin implements to the command line's group."""
    data = TyperGroup(name="data", help=DATA, no_args_is_help=True, rich_markup_mode="rich")
    for command, summary in SHARED_COMMANDS.items():
        entries = implementations(command)
        above, _, name = command.rpartition(" ")
        if entries and command in BY_KIND:
            added: Any = Kinds(name=name, help=summary, no_args_is_help=True, rich_markup_mode="rich")
            for entry in entries:
                added.add_command(Deferred(entry.name, entry.summary, partial(_of_kind, command, entry.name)))
        elif entries:
            added = Deferred(name, summary, partial(_of_backbone, command))
        else:
            continue
        (data if above else group).add_command(added)
    if data.commands:
        group.add_command(data)


def _of_kind(command: str, name: str, args: Sequence[str]) -> Any:
    return _built(command, choose(command, name))


def _of_backbone(command: str, args: Sequence[str]) -> Any:
    """The implementation that ``--backbone`` names, with that option among its own."""
    entry = choose(command, asked(args))
    built = _built(command, entry)
    if entry.name != ANY:
        option = _app(_option).params[0]
        option.expose_value = False
        names = [entry.name for entry in sorted(implementations(command), key=lambda entry: entry.name == ANY)]
        option.help = f"Which backbone's version of this command: {', '.join(names).replace(ANY, 'any other')}."
        built.params.append(option)
    return built


def _built(command: str, entry: Entry) -> Any:
    return _app(entry.load(), no_args_is_help=command not in RUNS_WITHOUT_ARGUMENTS)


def _app(function: Callable[..., Any], **settings: Any) -> Any:
    """A function with typer's annotations as a command."""
    app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    app.command(**settings)(function)
    return get_command(app)


def _option(backbone: Annotated[str | None, typer.Option(OPTION, SHORT)] = None) -> None: ...


def asked(args: Sequence[str]) -> str | None:
    """The value of ``--backbone`` or ``-b`` in arguments that are not parsed yet; the last one counts."""
    value, rest = None, list(args)
    while rest and (word := rest.pop(0)) != "--":
        if word in (OPTION, SHORT) and rest:
            value = rest.pop(0)
        elif word.startswith(f"{OPTION}="):
            value = word.partition("=")[2]
    return value
