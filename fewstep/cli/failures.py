"""The traceback of a bug, without the frames of the command-line parser and with a note that names a plugin's line."""

from __future__ import annotations

import re
from types import TracebackType

from fewstep.errors import note
from fewstep.plugins.registry import registry

PARSER = ("typer", "click")


def shorten(error: BaseException) -> None:
    """Remove the frames of the parser, and of the function that caught the error, from its traceback.

    From Python 3.11 on, a note names the innermost line in a plugin.
    """
    frames = []
    current = error.__traceback__
    while current is not None:
        frames.append(current)
        current = current.tb_next
    kept = [frame for frame in frames[1:] if _package(frame) not in PARSER]
    for frame, following in zip(kept, [*kept[1:], None], strict=True):
        frame.tb_next = following
    error.__traceback__ = kept[0] if kept else None
    if place := _place(kept):
        note(error, place)


def _place(frames: list[TracebackType]) -> str | None:
    owners = {re.split("[.:]", e.target)[0]: e.plugin for e in registry().all() if e.plugin != "fewstep"}
    for frame in reversed(frames):
        if owner := owners.get(_package(frame)):
            code = frame.tb_frame.f_code
            return f"raised in plugin {owner!r}: {code.co_filename}, line {frame.tb_lineno}, in {code.co_name}"
    return None


def _package(frame: TracebackType) -> str:
    return str(frame.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
