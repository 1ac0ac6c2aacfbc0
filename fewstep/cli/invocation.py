"""The command line of this call, and the hint that is printed when it is interrupted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from fewstep.console import command
from fewstep.interrupts import Interrupted

_arguments: ContextVar[Sequence[str]] = ContextVar("arguments", default=())
_began: ContextVar[float] = ContextVar("began")


@contextmanager
def invoked(arguments: Sequence[str], began: float) -> Iterator[None]:
    """Within the block, ``words`` and ``began`` return these arguments and this time of ``time.perf_counter``."""
    tokens = _arguments.set(arguments), _began.set(began)
    try:
        yield
    finally:
        _arguments.reset(tokens[0])
        _began.reset(tokens[1])


def began() -> float:
    """When this command began, by ``time.perf_counter``: the start of the program, or of a call of ``main``."""
    return _began.get(time.perf_counter())


def words() -> list[str]:
    """The command that was typed, beginning with the program's name."""
    return ["fewstep", *_arguments.get()]


def again(*more: str) -> str:
    """The command that was typed, to be copied, with those of the options ``more`` added that it lacks."""
    kept = words()
    end = kept.index("--") if "--" in kept else len(kept)
    kept[end:end] = [word for word in more if word not in kept]
    return command(*kept)


@contextmanager
def going_on(hint: Callable[[], str]) -> Iterator[None]:
    """On Ctrl-C, SIGTERM or SIGHUP within the block, take from ``hint`` what is kept and how to continue."""
    try:
        yield
    except KeyboardInterrupt as error:
        stopped = error if isinstance(error, Interrupted) else Interrupted()
        stopped.hint = hint()
        raise stopped from None
