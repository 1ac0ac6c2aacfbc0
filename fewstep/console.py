"""Printing: a console for any encoding, lines printed unchanged, and commands for the user to copy."""

from __future__ import annotations

import codecs
import os
import shlex
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, cast

import rich.console
from rich.status import Status
from rich.table import Column, Table
from rich.text import Text

WIDE = 10_000  # columns where there is no terminal, so that nothing is cut or wrapped
HELP = 160  # columns of the help there, whose frames fill the width
LOOKALIKES = {
    "\u2026": "...",
    **dict.fromkeys("\u2018\u2019", "'"),
    **dict.fromkeys("\u201c\u201d", '"'),
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212\u00b7\u2022", "-"),  # hyphens, dashes, minus, bullets
    **dict.fromkeys("─━┄┅┈┉═╌╍╴╶╸╺╼╾", "-"),
    **dict.fromkeys("│┃║╎╏╵╷╹╻╽╿", "|"),
    "\u00d7": "x",
    "\u00b1": "+-",
    "\u2044": "/",
    "\u2192": "->",
    "\u2264": "<=",
    "\u2265": ">=",
    "\u03bc": "u",  # the micro sign decomposes into this letter
}


def lookalike(char: str) -> str:
    """A character in ASCII: one that looks similar, its base letter, or its code as an escape (``\\u4e2d``)."""
    if char in LOOKALIKES:
        return LOOKALIKES[char]
    if "\u2500" <= char < "\u2580":  # the corners and crossings of boxes
        return "+"
    base = unicodedata.normalize("NFKD", char)
    if base != char:
        return "".join(map(lookalike, base))
    if unicodedata.combining(char):
        return ""
    return char.encode("ascii", "backslashreplace").decode()


def _encode_lookalikes(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(lookalike, error.object[error.start : error.end])), error.end


LENIENT = "fewstep.lookalikes"
codecs.register_error(LENIENT, _encode_lookalikes)


def speaks() -> bool:
    """Whether this process prints for the user: of several that torchrun started, only the first does."""
    return os.environ.get("RANK", "0") == "0"


class _Lenient:
    """A text stream wrapped so that it is only given characters of its encoding."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        return self._stream.write(text.encode(encoding, LENIENT).decode(encoding))


class Console(rich.console.Console):
    """A console on standard output or error. Any text can be printed, whatever the encoding, and none is markup.

    On a terminal it has the terminal's width; in a pipe or a file nothing is cut.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        stream = sys.stderr if stderr else sys.stdout
        super().__init__(
            file=cast("IO[str] | None", _Lenient(stream) if stream else None),
            stderr=stderr,
            width=None if stream and stream.isatty() else WIDE,
            markup=False,
            highlight=False,
            emoji=False,
            quiet=not speaks(),
        )

    def on_broken_pipe(self) -> None:
        """Go on without printing where nobody reads any more (``| head``): the work and its files are still wanted."""
        discard(self.file)


def discard(stream: IO[str]) -> None:
    """Redirect a standard stream, which nobody reads, to the null device, since Python flushes it again at exit."""
    with suppress(OSError):  # a stream without a file descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(console: rich.console.Console, line: str, style: str | None = None) -> None:
    """Print a line unchanged: not wrapped, highlighted or read as markup."""
    console.print(Text(line), style=style, soft_wrap=True, highlight=False)


def listing(*columns: str, title: str | None = None) -> Table:
    """An empty table whose cells are folded, never cut, on a narrow terminal."""
    return Table(*(Column(column, overflow="fold") for column in columns), title=title, title_justify="left")


def spinner(console: rich.console.Console, what: str) -> Status:
    """A spinner in ASCII beside ``what`` is being done, on a terminal. It disappears at the end."""
    return console.status(Text(what), spinner="line")


def command(*words: object) -> str:
    """A command for the user to copy, quoted for a shell."""
    return shlex.join(map(str, words))


def number_of(count: int, thing: str) -> str:
    """``1 step``, ``2 steps``."""
    return f"{count} {thing}" + "s" * (count != 1)


@contextmanager
def printable() -> Iterator[None]:
    """Within the block the process can print any text, also by ``print`` and in the help.

    A closed standard stream (``>&-``) is replaced by the null device.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=LENIENT)
    before = os.environ.get("COLUMNS")
    if before is None and not sys.stdout.isatty():
        os.environ["COLUMNS"] = str(HELP)  # where rich, which prints the help, looks for the width
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("COLUMNS", None)
