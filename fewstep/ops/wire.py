"""How a call travels through a compiled graph: a text that says what is what, its tensors, its integers, its floats.

A layout travels as its boundaries and coordinates, by which it is found again with all that it keeps, so that one
graph serves layouts of all lengths.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.core.alive import owner_of
from fewstep.core.layout import Packed
from fewstep.errors import FewstepError
from fewstep.ops.launches import Call

Flat = tuple[str, list[Tensor], list[int], list[float]]
_made: deque[Packed] = deque(maxlen=16)  # layouts made anew, kept for the next layer


def flat(args: Sequence[Any]) -> Flat:
    """A call's arguments as a torch op takes them. Raises FewstepError for one that it cannot take."""
    spec = ""
    tensors: list[Tensor] = []
    ints: list[int] = []
    floats: list[float] = []
    for a in args:
        if isinstance(a, Tensor):
            spec += "t"
            tensors.append(a)
        elif a is None:
            spec += "n"
        elif isinstance(a, Packed):
            spec += "p" if a.coords is None else "c"
            tensors += [a.cu_seqlens] if a.coords is None else [a.cu_seqlens, a.coords]
        elif isinstance(a, int | torch.SymInt):
            spec += "i"
            ints.append(a)  # type: ignore[arg-type]
        elif isinstance(a, float):
            spec += "f"
            floats.append(a)
        else:
            raise FewstepError(f"argument of type {type(a).__name__}; accepted: tensors, layouts, numbers, None")
    return spec, tensors, ints, floats


def count(spec: str) -> int:
    """Tensors of a call, those of layouts included."""
    return len(spec) + spec.count("c") - sum(map(spec.count, "nif"))


def places(spec: str) -> list[int]:
    """Where the tensor arguments are among all tensors of a call."""
    found, at = [], 0
    for kind in spec:
        if kind == "t":
            found.append(at)
        at += {"t": 1, "p": 1, "c": 2}.get(kind, 0)
    return found


def read(spec: str, tensors: Sequence[Tensor], ints: list[int], floats: list[float], layouts: bool) -> Call:
    """The inverse of :func:`flat`; without ``layouts`` each of them is None."""
    parts, whole, real = iter(tensors), iter(ints), iter(floats)
    args: list[Any] = []
    for kind in spec:
        if kind == "t":
            args.append(next(parts))
        elif kind in "pc":
            bounds, coords = next(parts), next(parts) if kind == "c" else None
            args.append(_layout(bounds, coords) if layouts else None)
        else:
            args.append(None if kind == "n" else next(whole) if kind == "i" else next(real))
    return Call(args)


def _layout(bounds: Tensor, coords: Tensor | None) -> Packed:
    """The layout that these tensors were taken from; a new one where that is gone."""
    found: Packed | None = owner_of(bounds, coords)
    if found is None:
        found = Packed(bounds, coords)
        _made.append(found)
    return found


def marks(values: Sequence[Any]) -> str:
    """0 for None and False, 1 for everything else."""
    return "".join("0" if v is None or v is False else "1" for v in values)


def spread(text: str, values: Sequence[Any]) -> list[Any]:
    """``values`` at the places marked 1, None elsewhere."""
    found = iter(values)
    return [next(found) if mark == "1" else None for mark in text]
