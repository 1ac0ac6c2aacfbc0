"""The structured-latent flow's way down to the transformer's resolution, and up again."""

from __future__ import annotations

from itertools import pairwise

import torch
from fewstep_shapes3d.sparse.geometry import Pooling
from torch import Tensor, nn

from fewstep.core.layout import Packed
from fewstep.errors import invalid
from fewstep_trellis.models.sparse_blocks import SparseResBlock


def io_levels(patch_size: int, io_block_channels: list[int] | None) -> list[int]:
    """Widths of the input and output blocks, one for each halving. Raises FewstepError for numbers that disagree."""
    if io_block_channels is None:  # as published: no halving then, whatever patch_size says
        return []
    halvings = patch_size.bit_length() - 1
    if patch_size != 1 << halvings:
        raise invalid("patch_size", patch_size, "a power of 2")
    if len(io_block_channels) != halvings:
        raise invalid("io_block_channels", io_block_channels, f"{halvings} widths, one for each halving by patch_size")
    return list(io_block_channels)


def input_blocks(widths: list[int], embedding: int, count: int) -> nn.ModuleList:
    """``count`` blocks for each width but the last, finest first; the last of them halves the resolution."""
    return nn.ModuleList(
        block
        for width, wider in pairwise(widths)
        for block in [
            *(SparseResBlock(width, embedding, width) for _ in range(count - 1)),
            SparseResBlock(width, embedding, wider, "down"),
        ]
    )


def output_blocks(widths: list[int], embedding: int, count: int, *, skips: bool) -> nn.ModuleList:
    """The mirror image of :func:`input_blocks`; with ``skips`` each is also given what its counterpart put out."""
    joined = 2 if skips else 1
    return nn.ModuleList(
        block
        for width, wider in reversed(list(pairwise(widths)))
        for block in [
            SparseResBlock(joined * wider, embedding, width, "up"),
            *(SparseResBlock(joined * width, embedding, width) for _ in range(count - 1)),
        ]
    )


def down(
    blocks: nn.ModuleList, h: Tensor, emb: Tensor, layout: Packed, levels: list[Pooling]
) -> tuple[Tensor, list[Tensor]]:
    """Through the input blocks; also what each of them put out."""
    skips, remaining = [], list(levels)
    for block in blocks:
        step = remaining.pop(0) if block.resample else None
        layout = step.coarse if step else layout
        h = block(h, emb, layout, step)
        skips.append(h)
    return h, skips


def up(
    blocks: nn.ModuleList, h: Tensor, emb: Tensor, layout: Packed, levels: list[Pooling], skips: list[Tensor] | None
) -> Tensor:
    """Through the output blocks up to the finest layout, ``layout``; ``skips`` are those of :func:`down`, or None."""
    layouts, remaining, kept = [layout, *(level.coarse for level in levels)], list(levels), list(skips or [])
    for block in blocks:
        step = None
        if block.resample:
            step = remaining.pop()
            layouts.pop()
        # Joined before the resolution doubles.
        h = block(torch.cat([h, kept.pop()], -1) if skips else h, emb, layouts[-1], step)
    return h
