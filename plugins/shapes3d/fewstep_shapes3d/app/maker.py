"""What the page needs of a backbone: networks to choose from, and objects made from pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image


@dataclass(frozen=True)
class Choice:
    """A student, or the teacher.

    Args:
        label: what it is called on the page.
        steps: default number of steps, for each stage.
        made_for: step counts in words, for each stage.
    """

    label: str
    steps: tuple[int, ...]
    made_for: tuple[str, ...]


@dataclass(frozen=True)
class Order:
    """What a visitor asks for.

    Args:
        picture: of the object.
        name: of the picture, for file names.
        choice: number of one of ``Maker.choices``.
        steps: for each stage.
        seed: of the noise.
        background: of an opaque picture, "remove" or "keep".
    """

    picture: Image.Image
    name: str
    choice: int
    steps: tuple[int, ...]
    seed: int
    background: str


@dataclass(frozen=True)
class Made:
    """What was made of an order.

    Args:
        glb: the mesh, a glTF file in binary form.
        seconds: by stage.
        counts: by name, such as faces and vertices.
        how: a line for each stage: which network, and how it was sampled.
        warnings: where that departs from a contract.
    """

    glb: bytes
    seconds: Mapping[str, float]
    counts: Mapping[str, int]
    how: Sequence[str]
    warnings: Sequence[str] = field(default=())


class Maker(Protocol):
    """Makes objects, one at a time; loaded models stay in memory.

    Attributes:
        title: which models these are.
        stages: their names, for the fields of steps.
        choices: networks to choose from; the first is the default.
        examples: pictures by name.
    """

    title: str
    stages: Sequence[str]
    choices: Sequence[Choice]
    examples: Mapping[str, Any]

    def check(self, order: Order) -> None:
        """Raise FewstepError for an order that cannot be made, as far as that can be told quickly."""

    def __call__(self, order: Order, tell: Callable[[str], None]) -> Made:
        """Make it.

        Args:
            order: that was checked.
            tell: called with what is done now, between steps; what it raises ends the work.

        Raises:
            FewstepError: nothing can be made of it.
        """
