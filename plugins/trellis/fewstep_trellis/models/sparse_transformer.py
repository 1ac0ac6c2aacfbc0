"""The trunk that all models of the structured-latent autoencoder share."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core.layout import Packed
from fewstep.errors import FewstepError
from fewstep_trellis.models.arguments import check_positive, check_shape
from fewstep_trellis.models.attention import number_of_heads
from fewstep_trellis.models.initialise import xavier, zero
from fewstep_trellis.models.precision import HalfTorso
from fewstep_trellis.models.recompute import run_block
from fewstep_trellis.models.sparse_blocks import SparseTransformerBlock
from fewstep_trellis.models.sparse_layers import check_attention_mode, check_packed, position_embedding_of
from fewstep_trellis.models.structure_flow import check_pe_mode


class SparseTransformer(HalfTorso):
    """Linear layer, position embedding, transformer blocks; a subclass adds ``out_layer``.

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

    takes: ClassVar[str]  # what the input is called, for messages
    out_layer: nn.Linear

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
        self.use_checkpoint = use_checkpoint
        heads = number_of_heads(model_channels, num_heads, num_head_channels)
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
        zero(self.out_layer)
        if use_fp16:
            self.convert_to_fp16()

    def torso(self) -> list[nn.Module]:
        return [self.blocks]

    def encode_voxels(self, x: Tensor, layout: Packed) -> Tensor:
        """``[T, C]`` to ``[T, model_channels]`` in the blocks' type. Raises FewstepError for a wrong shape."""
        check_packed(layout)
        check_shape(self.takes, x, (layout.rows, self.in_channels), "[T, C]")
        h: Tensor = self.input_layer(x) + position_embedding_of(layout, self.model_channels).to(x.dtype)
        h = h.to(self.torso_type(h))
        for block in self.blocks:
            h = run_block(block, h, layout, recompute=self.use_checkpoint)
        return h

    def project(self, x: Tensor, layout: Packed) -> Tensor:
        """``[T, C]`` to the output layer's ``[T, out]``, in the type of the input."""
        h = self.encode_voxels(x, layout).to(x.dtype)
        # This last norm has no parameters and torch's default eps 1e-5.
        out: Tensor = self.out_layer(F.layer_norm(h, h.shape[-1:]))
        return out
