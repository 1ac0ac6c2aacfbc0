"""Models that remember how they were built, and the checks that their constructors share."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from fewstep.errors import invalid


class Rebuildable(nn.Module):
    """A module that keeps its constructor arguments in ``args``, so that a checkpoint can name them.

    ``alias`` is another official name of its class, under which it was built and is saved again. ``computed`` lists
    keys that official files may hold but that are not read, since the model computes their values.
    """

    args: dict[str, Any]
    alias: str = ""
    computed: ClassVar[tuple[str, ...]] = ()

    @property
    def official_name(self) -> str:
        """The class name for a checkpoint."""
        return self.alias or type(self).__name__

    def remember(self, scope: Mapping[str, Any]) -> None:
        """Keep the constructor's arguments. ``scope`` is ``locals()`` at its first line."""
        hidden = {"self", "__class__"}
        self.args = {k: copy.deepcopy(v) for k, v in scope.items() if k not in hidden}


def check_positive(**numbers: int | None) -> None:
    """Raise FewstepError for the first number that is below 1 (None passes)."""
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise invalid(name, number, "a whole number from 1 up")


def check_divides(name: str, number: int, by: int, by_name: str) -> None:
    """Raise FewstepError unless ``number`` is a multiple of ``by``."""
    if number % by:
        raise invalid(name, number, f"a multiple of {by_name} ({by})")


def check_shape(name: str, x: Tensor | None, expected: tuple[int | None, ...], legend: str) -> None:
    """Raise FewstepError unless ``x`` is a tensor of the expected shape; None in ``expected`` stands for any size."""
    got = None if x is None else tuple(x.shape)
    if got is None or len(got) != len(expected) or any(e not in (None, g) for e, g in zip(expected, got, strict=True)):
        shape = ", ".join("any" if e is None else str(e) for e in expected)
        raise invalid(f"shape of {name}", got, f"{legend} = [{shape}]")
