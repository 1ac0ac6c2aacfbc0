"""The encoders of shape and texture to latents at 1 / 2^levels of the resolution."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from fewstep_trellis.models.arguments import check_positive, check_shape
from fewstep_trellis.models.sparse_layers import check_packed
from torch import Tensor, nn

from fewstep.core.layout import Packed
from fewstep_trellis2.vae.blocks import SparseResBlockS2C3d
from fewstep_trellis2.vae.levels import Levels


class SparseUnetVaeEncoder(Levels):
    """Features [T, Ci] of fine voxels to the posterior of latents on coarse ones.

    Args:
        in_channels: Ci.
        model_channels: widths by level, finest first.
        latent_channels: Cz.
        num_blocks: residual blocks by level.
        block_type: their class by level.
        down_block_type: class of the blocks between levels.
        block_args: arguments of a level's blocks.
        use_fp16: the blocks compute in half precision.

    Raises:
        FewstepError: arguments that do not fit together.
    """

    def __init__(
        self,
        in_channels: int,
        model_channels: list[int],
        latent_channels: int,
        num_blocks: list[int],
        block_type: list[str],
        down_block_type: list[str],
        block_args: list[dict[str, Any]],
        use_fp16: bool = False,
    ) -> None:
        arguments = locals()
        super().__init__()
        self.remember(arguments)
        check_positive(in_channels=in_channels, latent_channels=latent_channels)
        self.in_channels = in_channels
        self.input_layer = nn.Linear(in_channels, model_channels[0])
        self.to_latent = nn.Linear(model_channels[-1], 2 * latent_channels)
        down = ("down_block_type", down_block_type)
        self.make_levels(SparseResBlockS2C3d, down, model_channels, num_blocks, block_type, block_args)
        if use_fp16:
            self.convert_to_fp16()

    def forward(self, x: Tensor, layout: Packed) -> tuple[Tensor, Tensor, Packed]:
        """Mean and log variance of the latents [Tc, Cz], and the layout of their voxels.

        Raises:
            FewstepError: shapes that do not fit.
        """
        check_packed(layout)
        check_shape("x", x, (layout.rows, self.in_channels), "[T, Ci]")
        h = self.input_layer(x).to(self.torso_type(x))
        for level, blocks in enumerate(self.blocks):
            h = self.run_level(level, h, layout)
            if level + 1 < len(self.num_blocks):
                h, layout = blocks[-1](h, layout)  # type: ignore[index]
        h = h.to(x.dtype)
        mean, logvar = self.to_latent(F.layer_norm(h, h.shape[-1:])).chunk(2, -1)
        return mean, logvar, layout


class FlexiDualGridVaeEncoder(SparseUnetVaeEncoder):
    """The encoder of a dual grid's vertices and intersected edges.

    Args: as of :class:`SparseUnetVaeEncoder`, without ``in_channels``.

    Raises:
        FewstepError: arguments that do not fit together.
    """

    def __init__(
        self,
        model_channels: list[int],
        latent_channels: int,
        num_blocks: list[int],
        block_type: list[str],
        down_block_type: list[str],
        block_args: list[dict[str, Any]],
        use_fp16: bool = False,
    ) -> None:
        arguments = locals()
        super().__init__(
            6, model_channels, latent_channels, num_blocks, block_type, down_block_type, block_args, use_fp16
        )
        self.remember(arguments)

    def encode(self, vertices: Tensor, intersected: Tensor, layout: Packed) -> tuple[Tensor, Tensor, Packed]:
        """The posterior of a dual grid, see :meth:`forward`.

        Args:
            vertices: [T, 3] in their cells, 0 to 1.
            intersected: bool [T, 3].
            layout: of its voxels.
        """
        return self(torch.cat([vertices, intersected.to(vertices)], 1) - 0.5, layout)  # type: ignore[no-any-return]
