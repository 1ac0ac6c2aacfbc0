"""Radiance fields of low rank at each voxel (the "Strivec" of TRELLIS)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep_shapes3d.representations.moving import moved


@dataclass(frozen=True, eq=False, repr=False)
class RadianceField:
    """N local fields.

    Args:
        position: [N, 3] centres in [0, 1].
        trivec: [N, rank, 3, dim], the factors along x, y and z.
        density: [N, rank], raw.
        features_dc: [N, rank, 1, 3], colour as the constant spherical harmonic.
        resolution: edge of the voxel grid.
    """

    position: Tensor
    trivec: Tensor
    density: Tensor
    features_dc: Tensor
    resolution: int

    def __repr__(self) -> str:
        return f"RadianceField({len(self)} voxels)"

    def __len__(self) -> int:
        return len(self.position)

    @property
    def depth(self) -> Tensor:
        """uint8 [N, 1] level of the octree that these voxels are leaves of: log2 of the resolution, rounded down."""
        level = self.resolution.bit_length() - 1
        return torch.full((len(self), 1), level, dtype=torch.uint8, device=self.position.device)

    def to(self, device: torch.device | str) -> RadianceField:
        """The same fields on another device."""
        return moved(self, device)
