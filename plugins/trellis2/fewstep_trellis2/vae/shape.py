"""The shape decoder: from latents to a flexible dual grid, and from this to meshes."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from fewstep_shapes3d.representations import Mesh
from fewstep_trellis.models.arguments import check_positive
from torch import Tensor

from fewstep.core.layout import Packed
from fewstep_trellis2.mesh.dual_grid import DualGrid
from fewstep_trellis2.vae.decoder import Decoded, SparseUnetVaeDecoder

CHANNELS = 7  # vertex 3, intersections 3, weight of the split 1


class FlexiDualGridVaeDecoder(SparseUnetVaeDecoder):
    """Latents [T, Cz] to the dual grid of each sample's surface.

    Args: as of :class:`SparseUnetVaeDecoder`, and
        resolution: cells on a side of the finest grid.
        voxel_margin: how far a vertex may leave its cell, in cells.

    Raises:
        FewstepError: arguments that do not fit together.
    """

    def __init__(
        self,
        resolution: int,
        model_channels: list[int],
        latent_channels: int,
        num_blocks: list[int],
        block_type: list[str],
        up_block_type: list[str],
        block_args: list[dict[str, Any]],
        voxel_margin: float = 0.5,
        use_fp16: bool = False,
    ) -> None:
        arguments = locals()
        check_positive(resolution=resolution)
        super().__init__(
            CHANNELS, model_channels, latent_channels, num_blocks, block_type, up_block_type, block_args, use_fp16
        )
        self.remember(arguments)
        self.resolution, self.voxel_margin = resolution, voxel_margin

    def dual_grid(self, raw: Tensor, layout: Packed) -> DualGrid:
        """The output [T, 7] of :meth:`forward` as vertices, intersected edges and weights."""
        vertex = (1 + 2 * self.voxel_margin) * raw[:, :3].sigmoid() - self.voxel_margin
        return DualGrid(layout, vertex, raw[:, 3:6] > 0, F.softplus(raw[:, 6]))

    def meshes(self, decoded: Decoded, resolution: int | None = None) -> list[Mesh]:
        """The mesh of each sample in [-0.5, 0.5]^3.

        Args:
            decoded: the output of :meth:`forward`.
            resolution: cells on a side of the finest grid; None: the constructor's.
        """
        grid = self.dual_grid(decoded.features, decoded.layout)
        return grid.meshes(resolution or self.resolution)
