"""Tensors for an example call of an op, by which ``fewstep ops`` finds out which kernel is chosen on a machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fewstep.core.layout import Packed

Example = Callable[["Draw"], tuple[Any, ...]]
HEADS, WIDTH = 2, 64
LENGTHS = [27, 8]
ROWS = sum(LENGTHS)


class Draw:
    """Makes the tensors of an example call, all of them on one device.

    Args:
        device: of all tensors.
        dtype: of floating-point tensors.
        need: "forward", "backward" (tensors require gradients) or "jvp" (tensors carry tangents).
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, need: str) -> None:
        self.device, self.dtype, self.need = device, dtype, need

    def __call__(self, *shape: int) -> Tensor:
        """Zeros of this shape."""
        x = torch.zeros(shape, device=self.device, dtype=self.dtype, requires_grad=self.need == "backward")
        if self.need == "jvp":
            dual: Tensor = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
            return dual
        return x

    def heads(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [T, H, D]."""
        return self(ROWS, HEADS, WIDTH), self(ROWS, HEADS, WIDTH), self(ROWS, HEADS, WIDTH)

    def layout(self, coords: Tensor | None = None) -> Packed:
        """Two samples of 27 and 8 rows."""
        return Packed.of_lengths(LENGTHS, coords, self.device)
