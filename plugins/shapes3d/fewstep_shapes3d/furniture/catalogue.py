"""The kinds of furniture and how often each is drawn; a piece by seed and number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fewstep_shapes3d.data.mesh import Mesh
from fewstep_shapes3d.furniture import seating, small, storage, tables
from fewstep_shapes3d.furniture.solids import Build

KINDS: dict[str, tuple[float, Callable[[np.random.Generator], Build]]] = {
    "chair": (4, seating.chair),
    "office chair": (1.5, seating.office_chair),
    "armchair": (1.5, seating.armchair),
    "sofa": (2, seating.sofa),
    "stool": (1.5, seating.stool),
    "bench": (1, seating.bench),
    "table": (2.5, tables.table),
    "round table": (1.5, tables.round_table),
    "desk": (1.5, tables.desk),
    "night stand": (1, tables.night_stand),
    "shelf": (2, storage.shelf),
    "cupboard": (1.5, storage.cupboard),
    "chest of drawers": (1.5, storage.chest),
    "bed": (2, small.bed),
    "lamp": (1.5, small.lamp),
    "mug": (0.7, small.mug),
    "vase": (0.8, small.vase),
    "bin": (0.8, small.bin_),
    "coat stand": (0.5, small.coat_stand),
}


@dataclass(frozen=True)
class Piece:
    """Piece ``number`` of the endless series of a ``seed``: the same numbers give the same mesh on any machine."""

    seed: int
    number: int
    kind: str

    # What a prepared set says about an object, as about an entry of a catalogue.
    creator, licence, archive = "fewstep", "CC0 1.0", Path("furniture")

    @classmethod
    def draw(cls, seed: int, number: int) -> Piece:
        """A piece whose kind is drawn by its weight."""
        weights = np.array([weight for weight, _ in KINDS.values()])
        kind = np.random.default_rng((seed, number, 0)).choice(list(KINDS), p=weights / weights.sum())
        return cls(seed, number, str(kind))

    @property
    def key(self) -> str:
        """The key by which its cameras are drawn."""
        return f"furniture:{self.seed}:{self.number}"

    @property
    def name(self) -> str:
        """Kind and number."""
        return f"{self.kind} {self.number}"

    @property
    def category(self) -> str:
        """The kind."""
        return self.kind

    @property
    def model(self) -> str:
        """Seed and number."""
        return f"{self.seed}/{self.number}"

    def load(self) -> Mesh:
        """Its mesh in metres, z up, the front towards -y, standing on z = 0."""
        build = KINDS[self.kind][1]
        return build(np.random.default_rng((self.seed, self.number, 1))).mesh()
