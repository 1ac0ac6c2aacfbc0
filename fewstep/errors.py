"""The one kind of error a user sees, and how its text is made.

Every message names the key, what was got, what is accepted and the nearest valid spelling. The command line
prints it without a traceback and leaves with exit code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FewstepError(Exception):
    """Bad input from a user: a key, a file, a name. Never a bug of ours."""


def nearest(got: str, accepted: Iterable[str]) -> str | None:
    """The accepted spelling closest to ``got``, or None when nothing is near; of equals the one of the same letters."""
    names = {name.lower(): name for name in accepted}
    found = difflib.get_close_matches(got.lower(), list(names), n=3, cutoff=0.5)
    found.sort(key=lambda name: sorted(name) != sorted(got.lower()))
    return names[found[0]] if found else None


def unknown(key: str, got: object, accepted: Iterable[str]) -> FewstepError:
    """An error for a value outside a known list: ``unknown method 'mdt-vdd': accepted are ...``."""
    names = sorted(accepted)
    hint = nearest(str(got), names)
    text = f"unknown {key} {got!r}: accepted are {', '.join(names) or 'none (nothing is registered)'}"
    return FewstepError(text + (f"; did you mean {hint!r}?" if hint else ""))


def invalid(key: str, got: object, accepted: str) -> FewstepError:
    """An error for a value of a known key that cannot be used: ``data.root: got 'x', accepted is a folder``."""
    return FewstepError(f"{key}: got {got!r}; accepted: {accepted}")
