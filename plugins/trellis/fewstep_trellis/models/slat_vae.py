"""The autoencoder of structured latents: its common torso, and the encoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.errors import FewstepError
from fewstep.layout import Packed
from fewstep_trellis.models.arguments import Rebuildable, check_positive, check_shape
from fewstep_trellis.models.initialise import xavier, zero
from fewstep_trellis.models.precision import cast_matrices
from fewstep_trellis.models.recompute import run_block
from fewstep_trellis.models.sparse_blocks import SparseTransformerBlock
from fewstep_trellis.models.sparse_layers import check_attention_mode, position_embedding_of
from fewstep_trellis.models.structure_flow import check_pe_mode


class SparseTransformer(Rebuildable):
    """Linear layer, position embedding, transformer blocks: what all models of the autoencoder begin with.

    Args:
        in_channels: C of the input.
        model_channels: width.
        num_blocks: number of blocks.
        num_heads: attention heads; by default ``model_channels // num_head_channels``.
        num_head_channels: width of a head, used without ``num_heads``.
        mlp_ratio: width of the feed-forward networks in units of ``model_channels``.
        attn_mode: ``"full"``, or ``"swin"``: cubic windows, shifted by half in every other block.
        window_size: edge of the windows in voxels.
        pe_mode: ``"ape"``.
        use_checkpoint: recompute the blocks in the backward pass.
        qk_rms_norm: norm of queries and keys.

    Raises:
        FewstepError: arguments that do not fit together or that no published checkpoint uses.
    """

    def __init__(
        self,
        in_channels: int,
        model_channels: int,
        num_blocks: int,
        num_heads: int | None,
        num_head_channels: int | None,
        mlp_ratio: float,
        attn_mode: str,
        window_size: int | None,
        pe_mode: str,
        use_checkpoint: bool,
        qk_rms_norm: bool,
    ) -> None:
        super().__init__()
        check_positive(num_blocks=num_blocks, num_heads=num_heads, window_size=window_size)
        check_pe_mode(pe_mode)
        check_attention_mode(attn_mode)
        if attn_mode == "swin" and window_size is None:
            raise FewstepError("window_size: got None; accepted with attn_mode 'swin': a whole number from 1 up")
        self.in_channels, self.model_channels = in_channels, model_channels
        self.use_checkpoint, self.half_torso = use_checkpoint, False
        heads = num_heads or max(1, model_channels // (num_head_channels or 64))
        window = window_size if attn_mode == "swin" else None
        self.input_layer = nn.Linear(in_channels, model_channels)
        self.blocks = nn.ModuleList(
            SparseTransformerBlock(
                model_channels, heads, mlp_ratio, window, (window or 0) // 2 * (number % 2), qk_rms_norm
            )
            for number in range(num_blocks)
        )

    def start(self, *, use_fp16: bool) -> None:
        """The initial weights, then half precision where asked for; called once all layers exist."""
        xavier(self)
        if isinstance(out_layer := getattr(self, "out_layer", None), nn.Linear):
            zero(out_layer)
        if use_fp16:
            self.convert_to_fp16()

    def torso(self) -> list[nn.Module]:
        """The modules that compute in half precision with ``use_fp16``."""
        return [self.blocks]

    def convert_to_fp16(self) -> None:
        """Compute the blocks in half precision from now on."""
        self.half_torso = True
        cast_matrices(self.torso(), torch.float16)

    def convert_to_fp32(self) -> None:
        """Undo :meth:`convert_to_fp16`."""
        self.half_torso = False
        cast_matrices(self.torso(), torch.float32)

    def encode_voxels(self, x: Tensor, layout: Packed) -> Tensor:
        """``[T, C]`` to ``[T, model_channels]`` in the torso's type. Raises FewstepError for a shape that does not fit."""
        if not isinstance(layout, Packed):
            raise FewstepError(f"layout: got {type(layout).__name__}; accepted: Packed with coords [T, 3]")
        check_shape("x", x, (layout.rows, self.in_channels), "[T, C]")
        h = self.input_layer(x) + position_embedding_of(layout, self.model_channels).to(x.dtype)
        h = h.to(torch.float16) if self.half_torso else h
        for block in self.blocks:
            h = run_block(block, h, layout, recompute=self.use_checkpoint)
        return h

    def normed(self, h: Tensor, dtype: torch.dtype) -> Tensor:
        """The last norm, which has no parameters and torch's default eps 1e-5, in the type of the input."""
        return F.layer_norm(h.to(dtype), h.shape[-1:])


class SLatEncoder(SparseTransformer):
    """Features of voxels to their latents, with the constructor and the state dict of the official class.

    Args: as of :class:`SparseTransformer`, and
        resolution: edge of the voxel grid, kept for the record.
        latent_channels: Cz.
        use_fp16: the blocks compute in half precision.
    """

    def __init__(
        self,
        resolution: int,
        in_channels: int,
        model_channels: int,
        latent_channels: int,
        num_blocks: int,
        num_heads: int | None = None,
        num_head_channels: int | None = 64,
        mlp_ratio: float = 4,
        attn_mode: str = "swin",
        window_size: int | None = 8,
        pe_mode: str = "ape",
        use_fp16: bool = False,
        use_checkpoint: bool = False,
        qk_rms_norm: bool = False,
    ) -> None:
        arguments = locals()
        super().__init__(
            in_channels,
            model_channels,
            num_blocks,
            num_heads,
            num_head_channels,
            mlp_ratio,
            attn_mode,
            window_size,
            pe_mode,
            use_checkpoint,
            qk_rms_norm,
        )
        self.remember(arguments)
        self.resolution = resolution
        self.out_layer = nn.Linear(model_channels, 2 * latent_channels)
        self.start(use_fp16=use_fp16)

    def forward(
        self,
        x: Tensor,
        layout: Packed,
        sample_posterior: bool = False,
        noise: Tensor | None = None,
        return_raw: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Latents ``[T, Cz]``: the posterior's mean, or a draw from it.

        Args:
            x: ``[T, C]`` features, packed as ``layout``.
            layout: with coords ``[T, 3]``.
            sample_posterior: mean + exp(logvar / 2) * noise in place of the mean.
            noise: ``[T, Cz]``; drawn from torch's generator where it is missing.
            return_raw: also mean and log variance.
        """
        out = self.out_layer(self.normed(self.encode_voxels(x, layout), x.dtype))
        mean, logvar = out.chunk(2, -1)
        z = mean
        if sample_posterior:
            z = mean + (0.5 * logvar).exp() * (torch.randn_like(mean) if noise is None else noise)
        return (z, mean, logvar) if return_raw else z
