"""The options for finishing a mesh, checked before any work starts."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any

from fewstep.errors import invalid, need, unknown

UP = ("y", "z")
LEAST, MOST = 64, 8192  # texels on a side


@dataclass(frozen=True)
class Finish:
    """How a mesh is finished and written.

    Args:
        simplify: the share of the faces to remove, from 0 to below 1.
        texture: texels on a side of a square texture; 0: vertex colours.
        up: the axis of the file that points up, "y" as glTF has it, or "z".
        size: of the longest side in the file, in metres; None: the mesh's own, where the model's cube has a side of 1.

    Raises:
        FewstepError: a value out of range, or a missing package of the extra ``mesh``.
    """

    simplify: float = 0.0
    texture: int = 0
    up: str = UP[0]
    size: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.simplify, Real) or not 0 <= self.simplify < 1:
            raise invalid("--simplify", self.simplify, "the share of the faces to remove, from 0 to below 1")
        if self.texture and not (isinstance(self.texture, Integral) and LEAST <= self.texture <= MOST):
            raise invalid("--texture", self.texture, f"texels on a side, {LEAST} to {MOST} (0: vertex colours)")
        if self.up not in UP:
            raise unknown("--up", self.up, UP)
        if self.size is not None and not (isinstance(self.size, Real) and 0 < self.size < math.inf):
            raise invalid("--size", self.size, "metres, above 0")
        if self.simplify:
            need("fast_simplification")
        if self.texture:
            need("xatlas")

    @property
    def changes(self) -> bool:
        """Whether the mesh itself is changed, not only how it is written."""
        return bool(self.simplify or self.texture)

    @property
    def given(self) -> dict[str, Any]:
        """The options that differ from the defaults, for records and messages."""
        return {name: value for name, value in asdict(self).items() if value != getattr(Finish, name)}
