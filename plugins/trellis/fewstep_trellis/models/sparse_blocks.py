"""Blocks on packed voxels: the flow's modulated transformer and residual blocks, and those of the autoencoders."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from fewstep_shapes3d.sparse import pool_mean, subdivide, unpool
from fewstep_shapes3d.sparse.geometry import Pooling, children
from torch import Tensor, nn

from fewstep.core.layout import Packed
from fewstep_trellis.models.blocks import FeedForward, ModulatedCrossBlock
from fewstep_trellis.models.initialise import zero
from fewstep_trellis.models.norms import WideLayerNorm
from fewstep_trellis.models.sparse_layers import (
    SampleGroupNorm,
    SparseConv3d,
    SparseCrossAttention,
    SparseSelfAttention,
)

GROUPS = 32


class SparseModulatedCrossBlock(ModulatedCrossBlock):
    """Voxels ``[T, C]``, modulation input and condition ``[B, M, Cc]`` to ``[T, C]``."""

    self_attention = SparseSelfAttention
    cross_attention = SparseCrossAttention


class SparseTransformerBlock(nn.Module):
    """Attention and feed-forward network with plain pre-norms, ``[T, C]`` to ``[T, C]``.

    Args:
        channels: C.
        heads: number of heads.
        mlp_ratio: width of the feed-forward network in units of C.
        window: edge of the attention's windows; None for whole samples.
        shift: of the windows.
        qk_rms_norm: norm of queries and keys.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        mlp_ratio: float = 4.0,
        window: int | None = None,
        shift: int = 0,
        qk_rms_norm: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = WideLayerNorm(channels, eps=1e-6, elementwise_affine=False)
        self.norm2 = WideLayerNorm(channels, eps=1e-6, elementwise_affine=False)
        self.attn = SparseSelfAttention(channels, heads, qk_rms_norm, window=window, shift=shift)
        self.mlp = FeedForward(channels, mlp_ratio)

    def forward(self, x: Tensor, layout: Packed) -> Tensor:
        x = x + self.attn(self.norm1(x), layout)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class SparseResBlock(nn.Module):
    """A residual block of the flow, modulated by time, that may halve or double the resolution first.

    Args:
        channels: of the input.
        embedding: width of the time embedding.
        out_channels: of the output.
        resample: ``"down"``, ``"up"`` or ``""``.
    """

    RESAMPLE: ClassVar[tuple[str, ...]] = ("", "down", "up")

    def __init__(self, channels: int, embedding: int, out_channels: int, resample: str = "") -> None:
        super().__init__()
        self.resample = resample
        self.norm1 = WideLayerNorm(channels, eps=1e-6)
        self.norm2 = WideLayerNorm(out_channels, eps=1e-6, elementwise_affine=False)
        self.conv1 = SparseConv3d(channels, out_channels)
        self.conv2 = SparseConv3d(out_channels, out_channels)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * out_channels))
        self.skip_connection = nn.Identity() if out_channels == channels else nn.Linear(channels, out_channels)
        zero(self.conv2)

    def forward(self, x: Tensor, embedding: Tensor, layout: Packed, pooling: Pooling | None = None) -> Tensor:
        """``[T, C]`` to ``[T', C']``; ``layout`` is that of the output, ``pooling`` joins it to the input's."""
        if pooling is not None:
            x = pool_mean(x, pooling) if self.resample == "down" else unpool(x, pooling)
        # Unlike the transformer's modulation, scale comes before shift.
        scale, shift = self.emb_layers(embedding).chunk(2, -1)
        h = self.conv1(F.silu(self.norm1(x)), layout)
        h = self.conv2(F.silu(self.norm2.modulated(h, shift, scale, layout)), layout)
        out: Tensor = h + self.skip_connection(x)
        return out


class SparseSubdivideBlock(nn.Module):
    """A residual block of the mesh decoder that halves the voxels' edges: ``[T, C]`` to ``[8 T, C']``.

    Args:
        channels: of the input, a multiple of 32.
        out_channels: of the output, a multiple of 32.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.act_layers = nn.ModuleList([SampleGroupNorm(GROUPS, channels), nn.SiLU()])
        self.out_layers = nn.ModuleList(
            [
                SparseConv3d(channels, out_channels),
                SampleGroupNorm(GROUPS, out_channels),
                nn.SiLU(),
                SparseConv3d(out_channels, out_channels),
            ]
        )
        self.skip_connection = (
            nn.Identity() if out_channels == channels else SparseConv3d(channels, out_channels, kernel_size=1)
        )
        zero(self.out_layers[3])

    def forward(self, x: Tensor, layout: Packed) -> Tensor:
        """``layout`` is that of the input; the output's is :func:`~fewstep_shapes3d.sparse.geometry.children` of it."""
        finer = children(layout)
        h = subdivide(F.silu(self.act_layers[0](x, layout)))
        x = subdivide(x)
        h = F.silu(self.out_layers[1](self.out_layers[0](h, finer), finer))
        h = self.out_layers[3](h, finer)
        skip = x if isinstance(self.skip_connection, nn.Identity) else self.skip_connection(x, finer)
        out: Tensor = h + skip
        return out
