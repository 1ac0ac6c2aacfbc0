"""Layers on packed voxels ``[T, C]``: attention, submanifold convolution, group norm by sample."""

from __future__ import annotations

import math

import torch
from fewstep_shapes3d.sparse import sample_group_norm, submanifold_conv, windowed_attention
from fewstep_shapes3d.sparse.geometry import coords_of
from torch import Tensor, nn

from fewstep.core.layout import Packed
from fewstep.errors import FewstepError, unknown
from fewstep.ops import varlen_attention
from fewstep.ops.norms import Rotary
from fewstep_trellis.models.attention import Heads, ToCondition
from fewstep_trellis.models.embeddings import position_embedding
from fewstep_trellis.models.linear import Linear

ATTENTION_MODES = ("full", "swin")
UNPUBLISHED_MODES = ("shift_window", "shift_sequence", "shift_order")


def check_attention_mode(mode: str) -> None:
    """Raise FewstepError for anything but ``"full"`` and ``"swin"``."""
    if mode in UNPUBLISHED_MODES:
        raise FewstepError(
            f"attn_mode: got {mode!r}; accepted: full, swin. No published checkpoint uses a serialised or single-block "
            "mode"
        )
    if mode not in ATTENTION_MODES:
        raise unknown("attn_mode", mode, ATTENTION_MODES)


def check_packed(layout: Packed) -> None:
    """Raise FewstepError for anything but a packed layout with coordinates."""
    if not isinstance(layout, Packed):
        raise FewstepError(f"layout: got {type(layout).__name__}; accepted: Packed with coords [T, 3]")
    coords_of(layout)


def position_embedding_of(layout: Packed, channels: int) -> Tensor:
    """``[T, C]`` float32 sines and cosines of the coordinates, computed once for each layout and width."""
    return layout.once(("position embedding", channels), lambda: position_embedding(coords_of(layout), channels))


class SparseSelfAttention(Heads):
    """Attention among the voxels of a sample, or of a window, ``[T, C]`` to the same shape.

    Args:
        channels: C.
        heads: number of heads; must divide C, else FewstepError.
        qk_rms_norm: normalise queries and keys.
        qkv_bias: bias of the input projection.
        window: edge of the cubic windows in voxels; None for whole samples.
        shift: added to the coordinates before they are cut into windows.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        qk_rms_norm: bool = False,
        qkv_bias: bool = True,
        window: int | None = None,
        shift: int = 0,
    ) -> None:
        super().__init__(channels, heads)
        self.window, self.shift = window, shift
        self.to_qkv = Linear(channels, 3 * channels, bias=qkv_bias)
        self.finish(channels, qk_rms_norm)

    def forward(self, x: Tensor, layout: Packed, rotary: Rotary | None = None) -> Tensor:
        q, k, v = self.split(self.to_qkv(x), 3)
        q, k = self.normed(q, k, rotary)
        if self.window is None:
            heads = varlen_attention(q, k, v, layout, layout)
        else:
            heads = windowed_attention(q, k, v, layout, self.window, self.shift)
        out: Tensor = self.to_out(heads.flatten(-2))
        return out


class SparseCrossAttention(ToCondition):
    """Attention of voxels ``[T, C]`` to their sample's condition (``[B, M, Cc]``, or B of ``[M, Cc]``), to ``[T, C]``.

    Args: as of ``CrossAttention``.
    """

    def __init__(
        self, channels: int, cond_channels: int, heads: int, qk_rms_norm: bool = False, qkv_bias: bool = True
    ) -> None:
        super().__init__(channels, heads)
        self.to_q = Linear(channels, channels, bias=qkv_bias)
        self.to_kv = Linear(cond_channels, 2 * channels, bias=qkv_bias)
        self.finish(channels, qk_rms_norm)

    def forward(self, x: Tensor, tokens: Tensor | list[Tensor], layout: Packed) -> Tensor:
        k, v = self.keys_values(torch.cat(tokens) if isinstance(tokens, list) else tokens.flatten(0, 1))
        heads = varlen_attention(self.queries(x), k, v, layout, _layout_of(tokens, layout))
        out: Tensor = self.to_out(heads.flatten(-2))
        return out


def _layout_of(cond: Tensor | list[Tensor], layout: Packed) -> Packed:
    """The packed layout of a condition, cached on the layout of the voxels that attend to it."""
    lengths = tuple(len(tokens) for tokens in cond)
    return layout.once(("condition", lengths), lambda: Packed.of_lengths(list(lengths), device=cond[0].device))


class ConvolutionParameters(nn.Module):
    """The parameters of a convolution alone: ``weight`` ``[Co, k, k, k, Ci]`` and ``bias`` ``[Co]``."""

    def __init__(self, channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, *[kernel_size] * 3, channels))
        self.bias = nn.Parameter(torch.empty(out_channels))
        bound = 1 / math.sqrt(channels * kernel_size**3)  # as torch's own convolutions start
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)


class SparseConv3d(nn.Module):
    """Submanifold convolution ``[T, Ci]`` to ``[T, Co]``; the parameters sit in ``conv``, as in the checkpoints."""

    def __init__(self, channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.conv = ConvolutionParameters(channels, out_channels, kernel_size)

    def forward(self, x: Tensor, layout: Packed) -> Tensor:
        return submanifold_conv(x, self.conv.weight, self.conv.bias, layout)


class SampleGroupNorm(nn.GroupNorm):
    """Group norm with each sample's own statistics, ``[T, C]`` to ``[T, C]``."""

    def forward(self, x: Tensor, layout: Packed) -> Tensor:  # type: ignore[override]
        return sample_group_norm(x, layout, self.num_groups, self.weight, self.bias, self.eps)
