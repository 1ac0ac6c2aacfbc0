"""Options that commands share: ``--device cuda``, ``--count 8``, ``--steps 1,2,4``, ``--methods a,b``."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import typer

from fewstep.errors import FewstepError, invalid

DEVICE = typer.Option("--device", help="auto (CUDA where there is one), cpu, cuda, cuda:1, ...")


Text = TypeVar("Text", str, "str | None")


def home(path: Text) -> Text:
    """A path with ``~/`` spelled out, which a shell leaves as it is in ``--out=~/chair.glb``."""
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


def names(option: str, text: str | None) -> list[str]:
    """The names of a comma-separated list, in order.

    Raises:
        FewstepError: an empty item (``a,,b``) or a name twice.
    """
    if text is None:
        return []
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise invalid(option, text, "a comma-separated list without empty items")
    return _once(option, found)


def integers(option: str, text: str | None, least: int) -> list[int] | None:
    """The integers of a comma-separated list, in order; None where the option was not given.

    Raises:
        FewstepError: something that is no integer, lies below ``least``, or comes twice.
    """
    if text is None:
        return None
    accepted = f"integers from {least} on, separated by commas, for example 1,2,4"
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise invalid(option, text, accepted) from None
    if min(found) < least:
        raise invalid(option, text, accepted)
    return [int(one) for one in _once(option, [str(one) for one in found])]


def _once(option: str, found: list[str]) -> list[str]:
    twice = sorted({one for one in found if found.count(one) > 1})
    if twice:
        raise FewstepError(f"{option}: {', '.join(twice)} comes twice; accepted: each once")
    return found
