"""Options that commands share: ``--device cuda``, ``--count 8``, ``--steps 1,2,4``, ``--methods a,b``."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import typer

from fewstep.errors import FewstepError, invalid

DEVICE = typer.Option("--device", help="auto (CUDA if available), cpu, cuda, cuda:1, ...")


Text = TypeVar("Text", str, "str | None")


def home(path: Text) -> Text:
    """A path with ``~/`` expanded, which a shell does not do in ``--out=~/chair.glb``."""
    return os.path.expanduser(path) if path is not None and path.startswith("~/") else path


def whole(name: str, help: str, least: int, most: int | None = None, *more: str) -> Any:
    """A typer option that takes an integer from ``least`` to ``most``, with our message for anything else."""
    shown = f"{least}..{most}" if most is not None else f"{least}.."
    return typer.Option(name, *more, parser=_within(name, least, most), metavar=shown, help=help)


def _within(option: str, least: int, most: int | None) -> Callable[[str], int]:
    accepted = f"an integer from {least}" + (f" to {most}" if most is not None else " on")

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise invalid(option, text, accepted) from None
        if value < least or (most is not None and value > most):
            raise invalid(option, text, accepted)
        return value

    return parse


def real(name: str, help: str) -> Any:
    """A typer option that takes a number, with our message for anything else."""

    def parse(text: str) -> float:
        try:
            return float(text)
        except ValueError:
            raise invalid(name, text, "a number") from None

    return typer.Option(name, parser=parse, metavar="<float>", help=help)


def names(option: str, text: str | None) -> list[str]:
    """The names of a comma-separated list, in order.

    Raises:
        FewstepError: for an empty item (``a,,b``) or a name that comes twice.
    """
    if text is None:
        return []
    items = [part.strip() for part in text.split(",")]
    if not all(items):
        raise invalid(option, text, "a comma-separated list without empty items")
    return _once(option, items)


def integers(option: str, text: str | None, least: int) -> list[int] | None:
    """The integers of a comma-separated list, in order; None if the option was not given.

    Raises:
        FewstepError: for an item that is not an integer, is below ``least``, or comes twice.
    """
    if text is None:
        return None
    accepted = f"integers from {least} on, separated by commas, for example 1,2,4"
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise invalid(option, text, accepted) from None
    if min(numbers) < least:
        raise invalid(option, text, accepted)
    return [int(item) for item in _once(option, [str(number) for number in numbers])]


def _once(option: str, items: list[str]) -> list[str]:
    twice = sorted({item for item in items if items.count(item) > 1})
    if twice:
        raise FewstepError(f"{option}: {', '.join(twice)} comes twice; accepted: each once")
    return items
