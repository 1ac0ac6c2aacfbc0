"""What one training or sampling step is given: data, its layout and its condition."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.core.layout import Layout


@dataclass(frozen=True, eq=False)
class Condition:
    """What a sample is conditioned on, with its negative for classifier-free guidance (CFG).

    Args:
        tokens: [B, ...], or None for an unconditional model.
        negative_tokens: [B, ...]; None means zeros (TRELLIS's image models).
        blank: True promises that every token is 0, so that a network may skip cross attention.
    """

    tokens: Tensor | None = None
    negative_tokens: Tensor | None = None
    blank: bool = False

    def negative(self) -> Condition:
        """The condition of the unconditional pass."""
        if self.tokens is None:
            return self
        if self.negative_tokens is None:
            return Condition(torch.zeros_like(self.tokens), blank=True)
        return Condition(self.negative_tokens, self.negative_tokens)

    def select(self, rows_B: Tensor) -> Condition:
        """The conditions of these samples."""
        tokens = None if self.tokens is None else self.tokens[rows_B]
        negative = None if self.negative_tokens is None else self.negative_tokens[rows_B]
        return Condition(tokens, negative, self.blank)

    def dropped(self, drop_B: Tensor) -> Condition:
        """The negative condition where ``drop_B`` (bool [B]) says so."""
        empty = self.negative().tokens
        if self.tokens is None or empty is None:
            return self
        mask = drop_B.reshape(-1, *[1] * (self.tokens.dim() - 1))
        return Condition(torch.where(mask, empty, self.tokens), self.negative_tokens)

    def to(self, device: torch.device | str) -> Condition:
        """The same condition on another device."""
        tokens, negative = (None if v is None else v.to(device) for v in (self.tokens, self.negative_tokens))
        return Condition(tokens, negative, self.blank)


@dataclass(frozen=True)
class Batch:
    """Clean samples ``x0`` ([B, ...] or [T, C]), their layout and condition."""

    x0: Tensor
    layout: Layout
    cond: Condition = field(default_factory=Condition)

    def select(self, rows_B: Tensor) -> Batch:
        """A sub-batch."""
        x0, layout = self.layout.select(self.x0, rows_B)
        return Batch(x0, layout, self.cond.select(rows_B))

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device. A layout that is there already stays the same object, with its cache."""
        return Batch(self.x0.to(device), self.layout.to(device), self.cond.to(device))
