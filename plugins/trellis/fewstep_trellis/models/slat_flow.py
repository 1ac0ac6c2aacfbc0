"""The flow transformer of the second stage: latents on the occupied voxels."""

from __future__ import annotations

import torch.nn.functional as F
from fewstep_shapes3d.sparse.geometry import Pooling, pooling
from torch import Tensor, nn

from fewstep.core.batch import Condition
from fewstep.core.layout import Packed
from fewstep_trellis.models.arguments import check_positive, check_shape
from fewstep_trellis.models.attention import number_of_heads
from fewstep_trellis.models.blocks import modulation, modulation_for_blocks, tokens_for_blocks
from fewstep_trellis.models.embeddings import TimestepEmbedder
from fewstep_trellis.models.initialise import initialise
from fewstep_trellis.models.recompute import run_block
from fewstep_trellis.models.slat_io import down, input_blocks, io_levels, output_blocks, up
from fewstep_trellis.models.sparse_blocks import SparseModulatedCrossBlock
from fewstep_trellis.models.sparse_layers import check_packed, position_embedding_of
from fewstep_trellis.models.structure_flow import check_pe_mode
from fewstep_trellis.models.student_parts import ADDED, StudentParts


class SLatFlowModel(StudentParts):
    """Velocity of structured latents, with the constructor and the state dict of the official class.

    Args:
        resolution: edge of the voxel grid; kept for the record, coordinates may go beyond it.
        in_channels: C of the input.
        model_channels: width of the transformer; a multiple of the number of heads.
        cond_channels: Cc, width of the condition tokens.
        out_channels: C of the output.
        num_blocks: number of transformer blocks.
        num_heads: attention heads; by default ``model_channels // num_head_channels``.
        num_head_channels: width of a head, used without ``num_heads``.
        mlp_ratio: width of the feed-forward networks in units of ``model_channels``.
        patch_size: 2^n: voxels are merged n times before the transformer, 2 x 2 x 2 to one.
        num_io_res_blocks: residual blocks of each level of the input, and of the output.
        io_block_channels: n widths, finest first; None: no such blocks, and nothing is merged.
        pe_mode: ``"ape"``, sines and cosines of the merged voxels' positions.
        use_fp16: the blocks compute in half precision; embedders, norms and output stay in float32.
        use_checkpoint: recompute the transformer blocks in the backward pass; without effect under ``torch.func``
            transforms.
        use_skip_connection: input blocks feed the mirrored output blocks.
        share_mod: one modulation layer for all transformer blocks.
        qk_rms_norm: norm of queries and keys in self attention.
        qk_rms_norm_cross: the same in cross attention.
        two_time, guidance_input: a second time and the guidance strength, for students of methods that need them; not
            among the official arguments.
        points: velocities per pass, more than one for a policy (``fewstep.core.policy``); likewise.

    Raises:
        FewstepError: arguments that do not fit together, or ``pe_mode="rope"``.
    """

    def __init__(
        self,
        resolution: int,
        in_channels: int,
        model_channels: int,
        cond_channels: int,
        out_channels: int,
        num_blocks: int,
        num_heads: int | None = None,
        num_head_channels: int | None = 64,
        mlp_ratio: float = 4,
        patch_size: int = 2,
        num_io_res_blocks: int = 2,
        io_block_channels: list[int] | None = None,
        pe_mode: str = "ape",
        use_fp16: bool = False,
        use_checkpoint: bool = False,
        use_skip_connection: bool = True,
        share_mod: bool = False,
        qk_rms_norm: bool = False,
        qk_rms_norm_cross: bool = False,
        two_time: bool = False,
        guidance_input: bool = False,
        points: int = 1,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ADDED}
        super().__init__()
        self.remember(arguments)
        check_positive(resolution=resolution, patch_size=patch_size, num_heads=num_heads, num_blocks=num_blocks)
        check_positive(num_io_res_blocks=num_io_res_blocks)
        check_pe_mode(pe_mode)
        levels = io_levels(patch_size, io_block_channels)
        self.in_channels, self.out_channels, self.cond_channels = in_channels, out_channels, cond_channels
        self.model_channels, self.depth = model_channels, len(levels)
        self.use_skip = use_skip_connection
        self.use_checkpoint: bool | str = use_checkpoint
        heads = number_of_heads(model_channels, num_heads, num_head_channels)
        widths = [*levels, model_channels]

        self.t_embedder = TimestepEmbedder(model_channels)
        self.adaLN_modulation = modulation(model_channels) if share_mod else None
        self.input_layer = nn.Linear(in_channels, widths[0])
        self.input_blocks = input_blocks(widths, model_channels, num_io_res_blocks)
        self.blocks = nn.ModuleList(
            SparseModulatedCrossBlock(
                model_channels, cond_channels, heads, mlp_ratio, qk_rms_norm, qk_rms_norm_cross, share_mod
            )
            for _ in range(num_blocks)
        )
        self.out_blocks = output_blocks(widths, model_channels, num_io_res_blocks, skips=use_skip_connection)
        self.out_layer = nn.Linear(widths[0], out_channels)
        initialise(self, self.out_layer, self.adaLN_modulation)
        if two_time:
            self.take_second_time(model_channels)
        if guidance_input:
            self.take_strength(model_channels)
        if points > 1:
            self.become_policy(points)
        if use_fp16:
            self.convert_to_fp16()

    def torso(self) -> list[nn.Module]:
        return [self.input_blocks, self.blocks, self.out_blocks]

    def _check(self, x: Tensor, t: Tensor, tokens: Tensor | None, layout: Packed) -> None:
        check_packed(layout)
        check_shape("x", x, (layout.rows, self.in_channels), "[T, C]")
        check_shape("t", t, (layout.batch_size,), "[B]")
        check_shape("cond", tokens, (layout.batch_size, None, self.cond_channels), "[B, L, Cc]")

    def poolings(self, layout: Packed) -> list[Pooling]:
        """The halvings between ``layout`` and the transformer's, finest first."""
        found: list[Pooling] = []
        for _ in range(self.depth):
            found.append(pooling(layout))
            layout = found[-1].coarse
        return found

    def forward(
        self, x: Tensor, t: Tensor, cond: Tensor | Condition, layout: Packed, *, s: Tensor | None = None
    ) -> Tensor:
        """The velocity at ``x``.

        Args:
            x: ``[T, C]`` noisy latents, packed as ``layout``.
            t: ``[B]`` times, 0 (data) to 1000 (noise).
            cond: ``[B, L, Cc]`` condition tokens, or a ``Condition``; a blank one (all 0) costs no attention.
            layout: of ``x``, with coords ``[T, 3]``.
            s: ``[B]`` end times of the jumps, 0 to t, for a model with ``two_time``.

        Returns:
            ``[T, out_channels]`` in the type of ``x``, in the same order; of a policy ``[points, T, out_channels]``.

        Raises:
            FewstepError: a shape that does not fit.
        """
        self._check(x, t, cond.tokens if isinstance(cond, Condition) else cond, layout)
        h, emb, levels = self.input_layer(x), self.embedded(t, s, cond), self.poolings(layout)
        torso = self.torso_type(h)
        mod = modulation_for_blocks(emb, self.adaLN_modulation, torso)
        h, emb = h.to(torso), emb.to(torso)
        tokens = tokens_for_blocks(cond, torso)
        coarse = levels[-1].coarse if levels else layout
        h, skips = down(self.input_blocks, h, emb, layout, levels)
        h = h + position_embedding_of(coarse, self.model_channels).to(torso)
        for block in self.blocks:
            h = run_block(block, h, mod, tokens, coarse, recompute=self.use_checkpoint)
        h = up(self.out_blocks, h, emb, layout, levels, skips if self.use_skip else None)
        # In the torso's own type, and with torch's default eps 1e-5.
        out: Tensor = self.out_layer(F.layer_norm(h, h.shape[-1:]).to(x.dtype))
        return self.velocities(out)
