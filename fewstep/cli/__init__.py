"""The command line. A user's mistake gives one message on stderr and exit code 2, never a traceback."""

from __future__ import annotations

import errno
import re
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer

import fewstep
from fewstep.cli.failures import shorten
from fewstep.cli.invocation import again, invoked
from fewstep.console import discard, printable, speaks
from fewstep.errors import FewstepError, missing, nearest
from fewstep.interrupts import Interrupted, handled


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 for success, 2 for bad input, 1 if the output cannot be written,
    128 plus the number of a signal that interrupted it."""
    typed = sys.argv[1:] if arguments is None else arguments
    began = fewstep.IMPORTED if arguments is None else time.perf_counter()
    with invoked(typed, began), printable(), handled(ending=arguments is None), warnings_as_lines():
        return _run(typed)


def _run(arguments: Sequence[str]) -> int:
    try:
        from fewstep.cli.app import build  # takes half a second, in which Ctrl-C is to be caught too

        with build().make_context("fewstep", list(arguments)) as context:
            code = context.command.invoke(context)
        return code if isinstance(code, int) else 0
    except typer.Exit as done:
        return int(done.exit_code)
    except FewstepError as error:
        return _say(f"error: {error}", 2) if speaks() or error.orphaned else 2
    except (KeyboardInterrupt, typer.Abort) as error:
        stopped = error if isinstance(error, Interrupted) else Interrupted()
        text = f"interrupted; {stopped.hint or f'to start again: {again()}'}"
        return _say(text, stopped.exit_code) if speaks() else stopped.exit_code
    except BrokenPipeError:  # what is printed without a console: `fewstep generate --json | head`
        discard(sys.stdout)
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            shorten(error)
            raise error
        discard(sys.stdout)
        return _say(f"error: {error.filename or 'the output'} cannot be written: {error.strerror}", 1)
    except ImportError as error:
        if sentence := missing(error):
            return _say(f"error: {sentence}", 2)
        shorten(error)
        raise error
    except Exception as error:
        if not hasattr(error, "format_message"):  # not a usage error of the parser: a bug, with its traceback
            shorten(error)
            raise error
        return _say(_usage(error), 2) if error.format_message() else 2  # no message: the help was printed


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Print Python warnings for the user as one line on stderr, each text once."""
    seen: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        text = str(message)
        if issubclass(category, UserWarning) and text not in seen:
            seen.add(text)
            try:
                print(f"warning: {text}", file=sys.stderr)
            except BrokenPipeError:  # `2>&1 | head`
                discard(sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


def _usage(error: Any) -> str:
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "fewstep"
    text = error.format_message()
    text += _nearest_command(text, context)
    option = str(getattr(error, "option_name", "")).lstrip("-")
    if "." in option:
        text += f"; a config key is given as KEY=VALUE, here {option.partition('=')[0]}=..."
    return f"error: {text}\nhelp: {path} --help"


def _nearest_command(text: str, context: Any) -> str:
    """A hint for an unknown command, where typer (before 0.20) gives none."""
    known, got = getattr(getattr(context, "command", None), "commands", {}), re.search(r"No such command '(.+)'", text)
    hint = nearest(got[1], known) if got and "Did you mean" not in text else None
    return f" Did you mean {hint!r}?" if hint else ""


def _say(text: str, code: int) -> int:
    print(text, file=sys.stderr)
    return code
