"""The decoder from latents to features of voxels at 2^levels times the resolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from fewstep_trellis.models.arguments import check_positive, check_shape
from fewstep_trellis.models.sparse_layers import check_packed
from torch import Tensor, nn

from fewstep.core.layout import Packed
from fewstep.errors import FewstepError
from fewstep_trellis2.vae.blocks import SparseResBlockC2S3d
from fewstep_trellis2.vae.levels import Levels
from fewstep_trellis2.vae.subdivision import Subdivision


@dataclass(frozen=True, eq=False)
class Decoded:
    """The output of a decoder.

    Args:
        features: [T, Co] of the finest voxels.
        layout: of these voxels.
        subdivisions: the step from each level to the next, for a decoder that is to be guided along the same voxels.
    """

    features: Tensor
    layout: Packed
    subdivisions: list[Subdivision]


class SparseUnetVaeDecoder(Levels):
    """Latents [T, Cz] of coarse voxels to features [Tf, Co] of the voxels that they are divided into.

    Args:
        out_channels: Co.
        model_channels: widths by level, coarsest first.
        latent_channels: Cz.
        num_blocks: residual blocks by level.
        block_type: their class by level.
        up_block_type: class of the blocks between levels.
        block_args: arguments of a level's blocks.
        use_fp16: the blocks compute in half precision.
        pred_subdiv: the decoder predicts which children exist; otherwise it is given another's subdivisions.

    Raises:
        FewstepError: arguments that do not fit together.
    """

    def __init__(
        self,
        out_channels: int,
        model_channels: list[int],
        latent_channels: int,
        num_blocks: list[int],
        block_type: list[str],
        up_block_type: list[str],
        block_args: list[dict[str, Any]],
        use_fp16: bool = False,
        pred_subdiv: bool = True,
    ) -> None:
        arguments = locals()
        super().__init__()
        self.remember(arguments)
        check_positive(out_channels=out_channels, latent_channels=latent_channels)
        self.latent_channels, self.pred_subdiv = latent_channels, pred_subdiv
        self.output_layer = nn.Linear(model_channels[-1], out_channels)
        self.from_latent = nn.Linear(latent_channels, model_channels[0])
        self.make_levels(
            SparseResBlockC2S3d,
            ("up_block_type", up_block_type),
            model_channels,
            num_blocks,
            block_type,
            block_args,
            pred_subdiv=pred_subdiv,
        )
        if use_fp16:
            self.convert_to_fp16()

    def forward(self, z: Tensor, layout: Packed, guide: Sequence[Subdivision] = ()) -> Decoded:
        """Decode latents.

        Args:
            z: [T, Cz].
            layout: their voxels, with coords.
            guide: the subdivisions of another decoder on the same voxels, for one that does not predict its own.

        Raises:
            FewstepError: shapes that do not fit, a guide for a decoder that predicts its own subdivisions, none for one
                that does not, or a level without voxels.
        """
        steps = len(self.num_blocks) - 1
        if len(guide) != (0 if self.pred_subdiv else steps):
            wanted = "none, it predicts its own" if self.pred_subdiv else f"{steps}, of the shape decoder"
            raise FewstepError(f"guide: got {len(guide)} subdivisions; accepted: {wanted}")
        h = self._enter(z, layout)
        found: list[Subdivision] = []
        for level, blocks in enumerate(self.blocks):
            h = self.run_level(level, h, layout)
            if level < steps:
                children = guide[level] if guide else self._children(level, h, layout)
                h = blocks[-1](h, layout, children)  # type: ignore[index]
                layout = children.layout
                found.append(children)
        h = h.to(z.dtype)
        return Decoded(self.output_layer(F.layer_norm(h, h.shape[-1:])), layout, found)

    def upsample(self, z: Tensor, layout: Packed, times: int) -> Packed:
        """Only the voxels at 2^times the resolution; no features are computed on the finest of them.

        Raises:
            FewstepError: as :meth:`forward`, and for more times than the decoder has steps.
        """
        if not self.pred_subdiv or not 0 <= times < len(self.num_blocks):
            most = len(self.num_blocks) - 1 if self.pred_subdiv else 0
            raise FewstepError(f"times: got {times}; accepted: 0 to {most}")
        h = self._enter(z, layout)
        for level in range(times):
            h = self.run_level(level, h, layout)
            children = self._children(level, h, layout)
            if level + 1 < times:
                h = self.blocks[level][-1](h, layout, children)  # type: ignore[index]
            layout = children.layout
        return layout

    def _enter(self, z: Tensor, layout: Packed) -> Tensor:
        check_packed(layout)
        check_shape("z", z, (layout.rows, self.latent_channels), "[T, Cz]")
        h: Tensor = self.from_latent(z)
        return h.to(self.torso_type(z))

    def _children(self, level: int, h: Tensor, layout: Packed) -> Subdivision:
        children = Subdivision.of_logits(self.blocks[level][-1].to_subdiv(h), layout)  # type: ignore[index]
        if not children.layout.rows:
            raise FewstepError(f"decoder: no voxel is left after level {level}; the latents are not those of an object")
        return children
