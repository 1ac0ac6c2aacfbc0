"""The transformer blocks of both flows: TRELLIS's, each with an offset of its own to the shared modulation."""

from __future__ import annotations

from typing import Any

import torch
from fewstep_trellis.models.blocks import ModulatedCrossBlock
from fewstep_trellis.models.sparse_blocks import SparseModulatedCrossBlock
from torch import Tensor, nn


class OffsetBlock(ModulatedCrossBlock):
    """A block that adds its float32 vector ``modulation`` ``[6C]`` to the shared modulation ``[B, 6C]``.

    Args: as of ``ModulatedCrossBlock``. Without ``share_mod`` it is that block, and has no such vector.
    """

    def __init__(self, channels: int, *args: Any, **named: Any) -> None:
        super().__init__(channels, *args, **named)
        if self.share_mod:
            self.modulation = nn.Parameter(torch.randn(6 * channels) / channels**0.5)

    def own(self, mod: Tensor) -> Tensor:
        return (self.modulation + mod).to(mod.dtype) if self.share_mod else super().own(mod)


class SparseOffsetBlock(OffsetBlock, SparseModulatedCrossBlock):
    """The same on packed voxels ``[T, C]``."""
