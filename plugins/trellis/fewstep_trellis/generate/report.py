"""What ``fewstep generate`` and ``fewstep export`` print: networks, seconds by stage, the memory's peak, warnings."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.table import Table

from fewstep.console import say


class Announced(Protocol):
    """The networks of a run, with what is to be said about them."""

    @property
    def warnings(self) -> list[str]: ...
    def lines(self) -> list[str]: ...


def announce(chosen: Announced, console: Console, errors: Console) -> None:
    """Say which networks are used and how, and where that departs from a contract."""
    for line in chosen.lines():
        say(console, line)
    for line in chosen.warnings:
        say(errors, f"warning: {line}")


def whole(seconds: dict[str, float], began: float) -> dict[str, float]:
    """All seconds since ``began`` (of ``time.perf_counter``), including those before, between and after the stages."""
    passed = time.perf_counter() - began
    return {**seconds, "imports and the rest": passed - sum(seconds.values())}


def time_table(seconds: dict[str, float], objects: int) -> Table:
    """Seconds by stage and their share; with several objects the mean of one beside the sum."""
    table = Table("stage")
    for title in ("seconds", *(["an object"] if objects > 1 else []), "share"):
        table.add_column(title, justify="right")
    total = sum(seconds.values()) or 1.0
    for name, value in [*seconds.items(), ("total", sum(seconds.values()))]:
        each = [f"{value / objects:.2f}"] if objects > 1 else []
        table.add_row(name, f"{value:.2f}", *each, f"{value / total:.0%}", end_section=name == list(seconds)[-1])
    return table


def memory_line(peaks: dict[str, float], low_memory: bool) -> str:
    """The peaks in words."""
    mode = "one model at a time" if low_memory else "every model kept"
    return f"peak memory ({mode}): " + ", ".join(f"{name} {value:.2f} GiB" for name, value in peaks.items())


@contextmanager
def told(console: Console) -> Iterator[None]:
    """Print warnings in the block as lines on ``console``, each text once."""
    seen: set[str] = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        text = str(message)
        if issubclass(category, UserWarning) and text not in seen:
            seen.add(text)
            say(console, f"warning: {text}")

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield
