"""Colours and material of a surface as pictures, one set of texels for each place on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Texture:
    """A texture and where each face lies in it.

    A vertex on a seam has several places in the picture, so places are numbered by themselves.

    Args:
        uv: [U, 2] places in [0, 1], from the picture's upper left corner to the right and down, as glTF has them.
        corners: int64 [F, 3], the places of each face's corners.
        colour: uint8 [S, S, 3], sRGB.
        material: uint8 [S, S, 3], how metallic, rough and opaque the surface is, or None.
    """

    uv: Tensor
    corners: Tensor
    colour: Tensor
    material: Tensor | None = None

    def at(self, face: Tensor, weights: Tensor) -> Tensor:
        """[P, 3] colours in [0, 1] of places on the surface, bilinear between texels.

        Args:
            face: [P].
            weights: [P, 3] of its corners.
        """
        place = (self.uv[self.corners[face]] * weights[..., None]).sum(1)
        picture = self.colour.movedim(-1, 0)[None].float() / 255
        grid = (2 * place - 1).float()[None, None]
        found = F.grid_sample(picture, grid, padding_mode="border", align_corners=False)
        return found[0, :, 0].T
