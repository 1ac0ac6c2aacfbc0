"""Finding the object that owns a tensor, from the tensor alone.

A compiled graph hands tensors to the ops in it and nothing else, so an op that needs more than the numbers (what a
layout keeps on itself, say) asks here who owns them.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

_OWNERS: WeakValueDictionary[tuple[int, ...], Any] = WeakValueDictionary()


def remember(owner: Any, *parts: object) -> None:
    """``owner`` keeps ``parts`` alive for as long as it lives itself, and is what :func:`owner_of` finds for them."""
    _OWNERS[tuple(map(id, parts))] = owner


def owner_of(*parts: object) -> Any | None:
    """The living owner of exactly these objects; None where there is none."""
    return _OWNERS.get(tuple(map(id, parts)))
