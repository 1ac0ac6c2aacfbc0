"""The flow transformer of the second stage: latents on the occupied voxels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.errors import FewstepError, invalid
from fewstep.layout import Packed
from fewstep.sparse import Pooling, pooling
from fewstep_trellis.models.arguments import Rebuildable, check_positive, check_shape
from fewstep_trellis.models.blocks import modulation
from fewstep_trellis.models.embeddings import TimestepEmbedder
from fewstep_trellis.models.initialise import initialise
from fewstep_trellis.models.precision import cast_matrices
from fewstep_trellis.models.recompute import run_block
from fewstep_trellis.models.sparse_blocks import SparseModulatedCrossBlock, SparseResBlock
from fewstep_trellis.models.sparse_layers import position_embedding_of
from fewstep_trellis.models.structure_flow import check_pe_mode


def _io_levels(patch_size: int, io_block_channels: list[int] | None) -> list[int]:
    """Widths of the input and output blocks, one for each halving. Raises FewstepError for numbers that disagree."""
    halvings = patch_size.bit_length() - 1
    if patch_size != 1 << halvings:
        raise invalid("patch_size", patch_size, "a power of 2")
    levels = list(io_block_channels or [])
    if len(levels) != halvings:
        raise invalid("io_block_channels", io_block_channels, f"{halvings} widths, one for each halving by patch_size")
    return levels


class SLatFlowModel(Rebuildable):
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
        patch_size: 2^n: voxels are merged n times before the transformer.
        num_io_res_blocks: residual blocks of each level of the input, and of the output.
        io_block_channels: n widths, finest first; None or empty with ``patch_size`` 1.
        pe_mode: ``"ape"``, sines and cosines of the merged voxels' positions.
        use_fp16: the blocks compute in half precision; embedders, norms and output stay in float32.
        use_checkpoint: recompute the transformer blocks in the backward pass; without effect under ``torch.func``
            transforms.
        use_skip_connection: input blocks feed the mirrored output blocks.
        share_mod: one modulation layer for all transformer blocks.
        qk_rms_norm: norm of queries and keys in self attention.
        qk_rms_norm_cross: the same in cross attention.

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
    ) -> None:
        arguments = locals()
        super().__init__()
        self.remember(arguments)
        check_positive(resolution=resolution, patch_size=patch_size, num_heads=num_heads, num_blocks=num_blocks)
        check_positive(num_io_res_blocks=num_io_res_blocks)
        check_pe_mode(pe_mode)
        levels = _io_levels(patch_size, io_block_channels)
        self.in_channels, self.out_channels, self.cond_channels = in_channels, out_channels, cond_channels
        self.model_channels, self.depth = model_channels, len(levels)
        self.use_checkpoint, self.use_skip, self.half_torso = use_checkpoint, use_skip_connection, False
        heads = num_heads or max(1, model_channels // (num_head_channels or 64))
        widths = [*levels, model_channels]

        self.t_embedder = TimestepEmbedder(model_channels)
        self.adaLN_modulation = modulation(model_channels) if share_mod else None
        self.input_layer = nn.Linear(in_channels, widths[0])
        self.input_blocks = nn.ModuleList(
            SparseResBlock(width, model_channels, out, "down" if last else "")
            for width, wider in zip(widths, widths[1:], strict=False)
            for out, last in [*[(width, False)] * (num_io_res_blocks - 1), (wider, True)]
        )
        self.blocks = nn.ModuleList(
            SparseModulatedCrossBlock(
                model_channels, cond_channels, heads, mlp_ratio, qk_rms_norm, qk_rms_norm_cross, share_mod
            )
            for _ in range(num_blocks)
        )
        joined = 2 if use_skip_connection else 1
        self.out_blocks = nn.ModuleList(
            SparseResBlock(joined * inner, model_channels, width, "up" if first else "")
            for width, wider in reversed(list(zip(widths, widths[1:], strict=False)))
            for inner, first in [(wider, True), *[(width, False)] * (num_io_res_blocks - 1)]
        )
        self.out_layer = nn.Linear(widths[0], out_channels)
        initialise(self, self.out_layer, self.adaLN_modulation)
        if use_fp16:
            self.convert_to_fp16()

    def _torso(self) -> list[nn.Module]:
        return [self.input_blocks, self.blocks, self.out_blocks]

    def convert_to_fp16(self) -> None:
        """Compute all blocks in half precision from now on."""
        self.half_torso = True
        cast_matrices(self._torso(), torch.float16)

    def convert_to_fp32(self) -> None:
        """Undo :meth:`convert_to_fp16`."""
        self.half_torso = False
        cast_matrices(self._torso(), torch.float32)

    def _check(self, x: Tensor, t: Tensor, cond: Tensor, layout: Packed) -> None:
        if not isinstance(layout, Packed):
            raise FewstepError(f"layout: got {type(layout).__name__}; accepted: Packed with coords [T, 3]")
        check_shape("x", x, (layout.rows, self.in_channels), "[T, C]")
        check_shape("t", t, (layout.batch_size,), "[B]")
        check_shape("cond", cond, (layout.batch_size, None, self.cond_channels), "[B, L, Cc]")

    def poolings(self, layout: Packed) -> list[Pooling]:
        """The halvings between ``layout`` and the transformer's, finest first."""
        found: list[Pooling] = []
        for _ in range(self.depth):
            found.append(pooling(layout))
            layout = found[-1].coarse
        return found

    def _down(self, h: Tensor, emb: Tensor, layout: Packed, levels: list[Pooling]) -> tuple[Tensor, list[Tensor]]:
        """Through the input blocks; what each put out is kept for the mirrored output block."""
        skips, remaining = [], list(levels)
        for block in self.input_blocks:
            step = remaining.pop(0) if block.resample else None
            layout = step.coarse if step else layout
            h = block(h, emb, layout, step)
            skips.append(h)
        return h, skips

    def _up(self, h: Tensor, emb: Tensor, layout: Packed, levels: list[Pooling], skips: list[Tensor]) -> Tensor:
        remaining = list(levels)
        for block, skip in zip(self.out_blocks, reversed(skips), strict=True):
            step = remaining.pop() if block.resample else None
            layout = step.fine if step else layout
            h = block(torch.cat([h, skip], -1) if self.use_skip else h, emb, layout, step)
        return h

    def forward(self, x: Tensor, t: Tensor, cond: Tensor, layout: Packed) -> Tensor:
        """The velocity at ``x``.

        Args:
            x: ``[T, C]`` noisy latents, packed as ``layout``.
            t: ``[B]`` times, 0 (data) to 1000 (noise).
            cond: ``[B, L, Cc]`` condition tokens.
            layout: of ``x``, with coords ``[T, 3]``.

        Returns:
            ``[T, out_channels]`` in the type of ``x``, in the same order.

        Raises:
            FewstepError: a shape that does not fit.
        """
        self._check(x, t, cond, layout)
        h, emb, levels = self.input_layer(x), self.t_embedder(t), self.poolings(layout)
        mod = emb if self.adaLN_modulation is None else self.adaLN_modulation(emb)
        torso = torch.float16 if self.half_torso else h.dtype
        h, emb, mod, cond = (tensor.to(torso) for tensor in (h, emb, mod, cond))
        coarse = levels[-1].coarse if levels else layout
        h, skips = self._down(h, emb, layout, levels)
        h = h + position_embedding_of(coarse, self.model_channels).to(torso)
        for block in self.blocks:
            h = run_block(block, h, mod, cond, coarse, recompute=self.use_checkpoint)
        h = self._up(h, emb, coarse, levels, skips)
        # On the torso's own type, and with torch's default eps 1e-5.
        out: Tensor = self.out_layer(F.layer_norm(h, h.shape[-1:]).to(x.dtype))
        return out
