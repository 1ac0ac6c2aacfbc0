"""The sizes that an object's latents must have: their channels, and the cells of their grid."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fewstep.core.backbone import Backbone
from fewstep.errors import invalid
from fewstep_trellis.normalisation import Normalisation
from fewstep_trellis.official.files import Array, ItemError
from fewstep_trellis.official.network import arguments_of

CELLS = re.compile(r"_(\d+)l\d+")  # in the name of an encoder: 64l8 is 64 cells on a side and 8 channels
MOST = 1024  # cells on a side where neither the teacher nor the encoder's name says how many


@dataclass(frozen=True)
class Fits:
    """The sizes that latents must have; None: any.

    Args:
        channels: of the latents.
        side: cells on a side of the grid: all of them for structure latents, the most for voxels.
        whose: who has these sizes, for messages.
    """

    channels: int | None = None
    side: int | None = None
    whose: str = "the teacher has"

    @classmethod
    def of(cls, backbone: Backbone) -> Fits:
        """What the network of a backbone takes."""
        return cls.taken(arguments_of(backbone))

    @classmethod
    def taken(cls, arguments: Mapping[str, Any]) -> Fits:
        """What a network with these arguments takes."""
        return cls(arguments.get("in_channels"), arguments.get("resolution"))

    def normalised(self, normalisation: Normalisation) -> Fits:
        """With as many channels as a normalisation has. Raises FewstepError where there are others."""
        count = len(normalisation.mean)
        if self.channels not in (None, count):
            raise invalid("data.normalisation", f"{count} channels", f"{self.channels}, as {self.whose}")
        return replace(self, channels=count, whose=self.whose if self.channels else "the normalisation has")

    @classmethod
    def sizes(cls, latents: Tensor) -> Fits:
        """Those of latents [C, r, r, r], or [N, C] without a grid."""
        return cls(*latents.shape[:2]) if latents.dim() == 4 else cls(latents.shape[1])

    def like(self, latents: Tensor) -> Fits:
        """With the sizes of these latents where none were known."""
        own = Fits.sizes(latents)
        whose = self.whose if self.channels else "other objects have"
        return Fits(self.channels or own.channels, self.side or own.side, whose)

    def check(self, where: object, got: Fits) -> None:
        """Compare the sizes of latents with these. Raises ItemError."""
        for name, found, wanted in (("in_channels", got.channels, self.channels), ("resolution", got.side, self.side)):
            if None not in (found, wanted) and found != wanted:
                raise ItemError(f"{where}: latents with {name} {found}; {self.whose} {name} {wanted}")

    def check_voxels(self, where: Path, coords: Array, encoder: str) -> None:
        """Check that voxels [N, 3] are inside the grid, each once. If its side is unknown, the encoder's name decides.

        Raises:
            ItemError: naming a voxel.
        """
        named = CELLS.search(encoder)
        side = self.side or (int(named[1]) if named else MOST)
        low, high = int(coords.min()), int(coords.max())
        if low < 0 or high >= side:
            whose = self.whose if self.side else "the encoder's grid has" if named else "no grid has more than"
            raise ItemError(f"{where}: a voxel at {low if low < 0 else high}; {whose} {side} cells, from 0 on")
        cells = np.ravel_multi_index(tuple(coords.T.astype(np.int64)), (side,) * 3)
        if twice := len(cells) - len(np.unique(cells)):
            raise ItemError(f"{where}: {twice} of {len(cells)} voxels are there already; accepted: each once")


ANY = Fits()
