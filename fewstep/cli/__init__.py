"""The command line. Everything a user can get wrong is one message on stderr and exit code 2, never a traceback."""

from __future__ import annotations

import re
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer

import fewstep
from fewstep.errors import FewstepError, missing, nearest

_began: float | None = fewstep.IMPORTED  # None between two calls in one process


def began() -> float:
    """When this command began, by ``time.perf_counter``: with the program, or with a later call of :func:`main`."""
    return _began or time.perf_counter()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 2 bad input, 130 interrupted."""
    global _began
    _began = _began or time.perf_counter()
    from fewstep.cli.app import build

    try:
        with warnings_as_lines():
            code = build().main(args=arguments, prog_name="fewstep", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except FewstepError as error:
        return _say(f"error: {error}", 2)
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted", 130)
    except BrokenPipeError:  # `fewstep plugins | head`
        sys.stderr.close()
        return 0
    except ImportError as error:
        if sentence := missing(error):
            return _say(f"error: {sentence}", 2)
        raise
    except Exception as error:
        if not hasattr(error, "format_message"):  # not a usage error of the parser: a bug, with its traceback
            raise
        return _say(_usage(error), 2) if error.format_message() else 2  # no message: the help was asked for
    finally:
        _began = None


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """A Python warning for the user becomes one line on stderr, each text once."""
    seen: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        text = str(message)
        if issubclass(category, UserWarning) and text not in seen:
            seen.add(text)
            print(f"warning: {text}", file=sys.stderr)

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
