"""Lists on the command line: ``--steps 1,2,4``, ``--methods a,b``."""

from __future__ import annotations

from fewstep.errors import FewstepError, invalid


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


def integers(option: str, text: str, least: int) -> list[int]:
    """The integers of a comma-separated list, in order.

    Raises:
        FewstepError: something that is no integer, lies below ``least``, or comes twice.
    """
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
