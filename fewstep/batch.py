"""What one training or sampling step is given: data, its layout and its condition."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewstep.layout import Layout


@dataclass(frozen=True)
class Condition:
    """What a sample is conditioned on, with its negative for guidance.

    Args:
        tokens: [B, ...], or None for an unconditional model.
        negative_tokens: [B, ...]; None means zeros (TRELLIS's image models).
    """

    tokens: Tensor | None = None
    negative_tokens: Tensor | None = None

    def negative(self) -> Condition:
        """The condition of the unconditional pass."""
        if self.tokens is None:
            return self
        empty = torch.zeros_like(self.tokens) if self.negative_tokens is None else self.negative_tokens
        return Condition(empty, self.negative_tokens)

    def select(self, rows_B: Tensor) -> Condition:
        """The conditions of these samples."""
        tokens = None if self.tokens is None else self.tokens[rows_B]
        negative = None if self.negative_tokens is None else self.negative_tokens[rows_B]
        return Condition(tokens, negative)

    def dropped(self, drop_B: Tensor) -> Condition:
        """The negative condition where ``drop_B`` (bool [B]) says so."""
        empty = self.negative().tokens
        if self.tokens is None or empty is None:
            return self
        mask = drop_B.reshape(-1, *[1] * (self.tokens.dim() - 1))
        return replace(self, tokens=torch.where(mask, empty, self.tokens))

    def to(self, device: torch.device | str) -> Condition:
        """The same condition on another device."""
        moved = (None if v is None else v.to(device) for v in (self.tokens, self.negative_tokens))
        return Condition(*moved)


@dataclass(frozen=True)
class Batch:
    """Clean samples ``x0`` ([B, ...] or [T, C]), their layout and condition."""

    x0: Tensor
    layout: Layout
    cond: Condition = Condition()

    def select(self, rows_B: Tensor) -> Batch:
        """A sub-batch."""
        x0, layout = self.layout.select(self.x0, rows_B)
        return Batch(x0, layout, self.cond.select(rows_B))
