"""The flow transformer of the shape and texture stages: latents on the occupied voxels."""

from __future__ import annotations

import torch
from fewstep_shapes3d.sparse.geometry import coords_of
from fewstep_trellis.models.arguments import check_shape
from fewstep_trellis.models.blocks import Tokens
from fewstep_trellis.models.sparse_layers import check_packed, position_embedding_of
from torch import Tensor

from fewstep.core.batch import Condition
from fewstep.core.layout import Packed
from fewstep.errors import invalid
from fewstep.ops.norms import Rotary
from fewstep_trellis2.models.blocks import SparseOffsetBlock
from fewstep_trellis2.models.flow import FlowTransformer
from fewstep_trellis2.models.rotary import rotary_tables


class SLatFlowModel(FlowTransformer):
    """Velocity of structured latents, one token per voxel. Arguments: see ``FlowTransformer``.

    ``resolution`` is kept for the record: coordinates may go beyond it.
    """

    block = SparseOffsetBlock

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cond: Tokens | Condition,
        layout: Packed,
        *,
        s: Tensor | None = None,
        concat_cond: Tensor | None = None,
    ) -> Tensor:
        """The velocity at ``x``.

        Args:
            x: ``[T, C]`` noisy latents, packed as ``layout``.
            t: ``[B]`` times, 0 (data) to 1000 (noise).
            cond: ``[B, L, Cc]`` condition tokens, or B of ``[L, Cc]`` of any lengths, or a ``Condition``; a blank one
                (all 0) costs no attention.
            layout: of ``x``, with coords ``[T, 3]``.
            s: ``[B]`` end times of the jumps, 0 to t, for a model with ``two_time``.
            concat_cond: ``[T, C']``, concatenated to ``x`` row by row, such as the normalised shape latents for the
                texture flow; C + C' is ``in_channels``.

        Returns:
            ``[T, out_channels]`` in the type of ``x``, in the same order; of a policy ``[points, T, out_channels]``.

        Raises:
            FewstepError: a shape that does not fit.
        """
        check_packed(layout)
        if concat_cond is not None:
            check_shape("concat_cond", concat_cond, (layout.rows, None), "[T, C']")
            x = torch.cat([x, concat_cond.to(x.dtype)], -1)
        check_shape("x", x, (layout.rows, self.in_channels), "[T, C], with concat_cond beside it")
        check_shape("t", t, (layout.batch_size,), "[B]")
        self._check_tokens(cond.tokens if isinstance(cond, Condition) else cond, layout.batch_size)
        h = self.input_layer(x)
        if self.rotary:
            return self.through_blocks(h, t, s, cond, self._tables(layout, h.device), layout)
        h = h + position_embedding_of(layout, self.model_channels).to(h.dtype)
        return self.through_blocks(h, t, s, cond, None, layout)

    def _check_tokens(self, tokens: Tokens | None, batch: int) -> None:
        if not isinstance(tokens, list):
            return check_shape("cond", tokens, (batch, None, self.cond_channels), "[B, L, Cc]")
        if len(tokens) != batch:
            raise invalid("cond", f"a list of {len(tokens)}", f"one of {batch}, as many as samples")
        for one in tokens:
            check_shape("cond", one, (None, self.cond_channels), "[L, Cc]")

    def _tables(self, layout: Packed, device: torch.device) -> Rotary:
        """The tables of these voxels, computed once for each layout. The device is the layout's, or "meta"."""
        how = self.head_width, self.frequencies
        return layout.once(("rotary", device, *how), lambda: rotary_tables(coords_of(layout).to(device), *how))
