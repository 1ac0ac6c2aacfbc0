"""Colours and material of a surface as texture images."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Texture:
    """A texture and where each face lies in it.

    A vertex on a seam has several UV coordinates, so these are numbered independently of the vertices.

    Args:
        uv: [U, 2] in [0, 1], from the picture's upper left corner to the right and down, as in glTF.
        corners: int64 [F, 3], the rows of ``uv`` of each face's corners.
        colour: uint8 [S, S, 3], sRGB.
        material: uint8 [S, S, 3], metallic, roughness and opacity, or None.
    """

    uv: Tensor
    corners: Tensor
    colour: Tensor
    material: Tensor | None = None

    def at(self, face: Tensor, weights: Tensor) -> Tensor:
        """[P, 3] colours in [0, 1] of places on the surface, bilinear between texels.

        Args:
            face: [P].
            weights: [P, 3], barycentric.
        """
        place = (self.uv[self.corners[face]] * weights[..., None]).sum(1)
        picture = self.colour.movedim(-1, 0)[None].float() / 255
        grid = (2 * place - 1).float()[None, None]
        found = F.grid_sample(picture, grid, padding_mode="border", align_corners=False)
        return found[0, :, 0].T
