"""Several prepared sets as one: their objects one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator

from fewstep.errors import invalid
from fewstep_shapes3d.data.prepared import HeldOutSplit, PreparedSet
from fewstep_shapes3d.data.surface import Bytes

SHARED = ("token_scale", "pca_mean", "pca_basis")  # must be equal for tokens of two sets to mean the same


def _folders(value: Any) -> Any:
    if isinstance(value, str | Path):
        return [part.strip() for part in str(value).split(",") if part.strip()]
    return value


Folders = Annotated[tuple[Path, ...], BeforeValidator(_folders)]  # a config's key: folders, joined by commas


@dataclass(frozen=True)
class JoinedSet(PreparedSet):
    """The objects of ``parts``, in order. ``folder`` and ``manifest`` are the first one's."""

    parts: tuple[PreparedSet, ...] = ()

    @cached_property
    def surface_codes(self) -> list[Bytes]:
        return [codes for part in self.parts for codes in part.surface_codes]

    def picture(self, index: int) -> npt.NDArray[np.uint8]:
        starts = np.cumsum([0, *map(len, self.parts)])
        number = int(np.searchsorted(starts, index, side="right")) - 1
        if not 0 <= index < starts[-1]:
            raise invalid("index", index, f"0 to {starts[-1] - 1}")
        return self.parts[number].picture(index - int(starts[number]))


def load_sets(folders: Sequence[Path], held_out: HeldOutSplit = "test", key: str = "data.root") -> PreparedSet:
    """The prepared set in a folder, or the sets of several folders as one.

    Sets go together if they share resolution, views and the map from pictures to tokens, as does a set that
    `fewstep data prepare furniture` makes ``--like`` another. ``key`` is what the user gave them as, for messages.

    Raises:
        FewstepError: no folder, a set that cannot be read, or sets that do not go together.
    """
    if not folders:
        raise invalid(key, "nothing", "folders made by `fewstep data prepare`, joined by commas")
    parts = tuple(PreparedSet.load(folder, held_out, key) for folder in folders)
    first = parts[0]
    for part in parts[1:]:
        for name in ("resolution", "views", "channels"):
            if getattr(part, name) != getattr(first, name):
                raise _apart(key, first, part, f"{name} {getattr(first, name)} and {getattr(part, name)}")
        if any(not np.array_equal(part.arrays[key], first.arrays[key]) for key in SHARED):
            raise _apart(key, first, part, "different maps from pictures to tokens")
    if len(parts) == 1:
        return first
    rows = {key: np.concatenate([part.arrays[key] for part in parts]) for key in ("occupancy", "split", "tokens")}
    return JoinedSet(
        first.folder,
        first.manifest,
        [row for part in parts for row in part.table],
        first.arrays | rows,
        [line for part in parts for line in part.left_out],
        held_out,
        parts,
    )


def _apart(key: str, first: PreparedSet, other: PreparedSet, why: str) -> Exception:
    text = f"sets that go together; these have {why}. `fewstep data prepare furniture --like SET` makes one that does"
    return invalid(key, f"{first.folder},{other.folder}", text)
