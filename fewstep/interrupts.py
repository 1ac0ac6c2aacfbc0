"""Ctrl-C, SIGTERM and SIGHUP: the first signal ends the work in an orderly way, a second one the process at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
SHOW_CURSOR = b"\x1b[?25h"


class Interrupted(KeyboardInterrupt):
    """A signal that asks the process to end; ``hint`` says what is kept and how to go on."""

    def __init__(self, number: int = signal.SIGINT, hint: str = "") -> None:
        super().__init__()
        self.number, self.hint = number, hint

    @property
    def exit_code(self) -> int:
        """128 plus the signal's number, as in a shell."""
        return 128 + self.number


class _Deferral:
    """Whether the current work checks for signals itself, and the signal that has arrived meanwhile."""

    active = False
    signal: Interrupted | None = None


@contextmanager
def handled(ending: bool = False) -> Iterator[None]:
    """Within the block a signal raises ``Interrupted`` in the main thread, unless it is deferred.

    Signals that the process was started to ignore (``nohup``) stay ignored. In another thread nothing is installed. At
    the end the handlers are restored, except after a signal in a process that is ``ending``, which a second one kills.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ours = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    process, received = os.getpid(), list[int]()

    def first(number: int, frame: Any) -> None:
        for each in ours:
            signal.signal(each, signal.SIG_DFL)
        if os.getpid() != process:  # a forked worker ends by the default action
            os.kill(os.getpid(), number)
            return
        received.append(number)
        _show_cursor()
        if not _Deferral.active:
            raise Interrupted(number)
        _Deferral.signal = Interrupted(number)

    for number in ours:
        signal.signal(number, first)
    try:
        yield
    finally:
        if not (ending and received):
            for number in ours:
                signal.signal(number, before[number])


@contextmanager
def deferred() -> Iterator[Callable[[], Interrupted | None]]:
    """Within the block a signal raises nothing. The yielded function returns it, for work that stops between steps."""
    _Deferral.active, _Deferral.signal = True, None
    try:
        yield lambda: _Deferral.signal
    finally:
        _Deferral.active = False


def _show_cursor() -> None:
    """Show the cursor on both streams, unbuffered since the signal may have interrupted a write. A stream whose
    terminal is gone is replaced by the null device."""
    for stream in (1, 2):
        try:
            os.write(stream, SHOW_CURSOR if os.isatty(stream) else b"")
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
