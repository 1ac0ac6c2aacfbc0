"""The flow transformer of the structure stage: a coarse dense grid of structure latents."""

from __future__ import annotations

import torch
from fewstep_trellis.models.arguments import check_shape
from fewstep_trellis.models.embeddings import grid_coords, position_embedding
from torch import Tensor

from fewstep.core.batch import Condition
from fewstep_trellis2.models.blocks import OffsetBlock
from fewstep_trellis2.models.flow import FlowTransformer
from fewstep_trellis2.models.rotary import grid_tables


class SparseStructureFlowModel(FlowTransformer):
    """Velocity of structure latents, one token per cell. Arguments: see ``FlowTransformer``.

    As in the official class, ``rope_freq`` has no effect: the default frequencies are used. That class's buffer
    ``rope_phases`` is computed here, and neither read nor written.
    """

    block = OffsetBlock
    computed = ("rope_phases",)
    pos_emb: Tensor

    def keep_positions(self) -> None:
        if not self.rotary:
            positions = position_embedding(grid_coords(self.resolution), self.model_channels)
            self.register_buffer("pos_emb", positions.to(torch.get_default_device()))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | Condition, *, s: Tensor | None = None) -> Tensor:
        """The velocity at ``x``.

        Args:
            x: ``[B, C, R, R, R]`` noisy latents.
            t: ``[B]`` times, 0 (data) to 1000 (noise).
            cond: ``[B, L, Cc]`` condition tokens, or a ``Condition``; a blank one (all 0) costs no attention.
            s: ``[B]`` end times of the jumps, 0 to t, for a model with ``two_time``.

        Returns:
            ``[B, out_channels, R, R, R]`` in the type of ``x``; of a policy ``[points, B, out_channels, R, R, R]``.

        Raises:
            FewstepError: a shape that does not fit.
        """
        size, batch = self.resolution, x.shape[0]
        check_shape("x", x, (None, self.in_channels, size, size, size), "[B, C, R, R, R]")
        check_shape("t", t, (batch,), "[B]")
        tokens = cond.tokens if isinstance(cond, Condition) else cond
        check_shape("cond", tokens, (batch, None, self.cond_channels), "[B, L, Cc]")
        h = self.input_layer(x.flatten(2).mT)
        if self.rotary:
            out = self.through_blocks(h, t, s, cond, grid_tables(size, self.head_width, x.device))
        else:
            out = self.through_blocks(h + self.pos_emb, t, s, cond, None)
        cells: Tensor = out.mT.unflatten(-1, (size, size, size))
        return cells
