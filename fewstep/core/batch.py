"""What one training or sampling step is given: data, its layout and its condition."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from fewstep.core.layout import Layout

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Condition:
    """What a sample is conditioned on, with its negative for guidance.

    What a network derives from a condition and its weights alone may be kept on it (:meth:`once`), for the passes and
    sampler steps that are handed the same object.

    Args:
        tokens: [B, ...], or None for an unconditional model.
        negative_tokens: [B, ...]; None means zeros (TRELLIS's image models).
        blank: every token is 0, known without looking at them.
    """

    tokens: Tensor | None = None
    negative_tokens: Tensor | None = None
    blank: bool = False
    base: tuple[Condition, int] | None = field(init=False, repr=False, default=None)
    _memo: dict[Hashable, Any] = field(init=False, repr=False, default_factory=dict)

    def once(self, key: Hashable, version: Hashable, build: Callable[[], T]) -> T:
        """What ``build`` returns, kept under ``key`` for as long as ``version`` stays equal."""
        known = self._memo.get(key)
        if known is None or known[0] != version:
            known = self._memo[key] = (version, build())
        found: T = known[1]
        return found

    def negative(self) -> Condition:
        """The condition of the unconditional pass, the same object each time."""
        return self if self.tokens is None else self.once("negative", None, self._negative)

    def _negative(self) -> Condition:
        assert self.tokens is not None
        blank = self.negative_tokens is None
        empty = torch.zeros_like(self.tokens) if self.negative_tokens is None else self.negative_tokens
        return Condition(empty, self.negative_tokens, blank)

    def cast(self, dtype: torch.dtype) -> Condition:
        """The same condition in another floating-point type; itself where it has that type."""
        tokens = self.tokens
        if tokens is None or tokens.dtype == dtype:
            return self
        return self.once(("cast", dtype), None, lambda: Condition(tokens.to(dtype), self.negative_tokens, self.blank))

    def repeat(self, copies: int) -> Condition:
        """The condition of ``copies`` copies of the batch one after the other; it knows its ``base``."""
        return self.once(("repeat", copies), None, lambda: self._repeat(copies))

    def _repeat(self, copies: int) -> Condition:
        tokens, negative = (
            None if x is None else x.repeat(copies, *[1] * (x.dim() - 1)) for x in (self.tokens, self.negative_tokens)
        )
        found = Condition(tokens, negative, self.blank)
        object.__setattr__(found, "base", (self, copies))
        return found

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


def joined(conditions: Sequence[Condition]) -> Condition:
    """The condition of batches one after the other, all of the same model."""
    first = conditions[0]
    if all(c is first for c in conditions):
        return first.repeat(len(conditions))
    tokens = [c.tokens for c in conditions if c.tokens is not None]
    negative = [c.negative_tokens for c in conditions if c.negative_tokens is not None]
    return Condition(
        torch.cat(tokens) if tokens else None,
        torch.cat(negative) if negative else None,
        all(c.blank for c in conditions),
    )


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
