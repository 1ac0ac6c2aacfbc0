"""What one training or sampling step is given: data, its layout and its condition."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from fewstep.core.layout import Layout, moved

V = TypeVar("V", "Condition", "Batch")


@dataclass(frozen=True, eq=False)
class Condition:
    """What a sample is conditioned on, with its negative for classifier-free guidance (CFG).

    Args:
        tokens: [B, ...], or None for an unconditional model.
        negative_tokens: [B, ...]; None means zeros (TRELLIS's image models).
        blank: True promises that every token is 0, so that a network may skip cross attention.
        strength: [B] guidance strengths w for a student that takes them as an input; another network ignores them.

    A dataclass that derives from it may add tensors [B, ...]; they stay with their samples.
    """

    tokens: Tensor | None = None
    negative_tokens: Tensor | None = None
    blank: bool = False
    strength: Tensor | None = None

    def negative(self) -> Condition:
        """The condition of the unconditional pass."""
        if self.tokens is None:
            return self
        if self.negative_tokens is None:
            return replace(self, tokens=torch.zeros_like(self.tokens), blank=True)
        return replace(self, tokens=self.negative_tokens, blank=False)

    def with_strength(self, strength: float, x: Tensor, layout: Layout) -> Condition:
        """The condition with one guidance strength for all samples ``x``."""
        return replace(self, strength=torch.full((layout.batch_size,), strength, device=x.device))

    def select(self, rows_B: Tensor) -> Condition:
        """The conditions of these samples."""
        return _changed(self, lambda tensor: tensor[rows_B])

    def dropped(self, drop_B: Tensor) -> Condition:
        """The condition with the negative tokens for the samples where ``drop_B`` (bool [B]) is true."""
        negative = self.negative().tokens
        if self.tokens is None or negative is None:
            return self
        mask = drop_B.reshape(-1, *[1] * (self.tokens.dim() - 1))
        return replace(self, tokens=torch.where(mask, negative, self.tokens), blank=False)

    def to(self, device: torch.device | str) -> Condition:
        """The same condition on another device."""
        return _changed(self, lambda tensor: moved(tensor, device))


@dataclass(frozen=True)
class Batch:
    """Clean samples ``x0`` ([B, ...] or [T, C]), their layout and condition.

    A dataclass that derives from it may add tensors, tables of tensors and conditions, such as the noise that a stored
    pair began with. They are selected and moved with the samples: a tensor as long as ``x0`` is taken to have the rows
    of ``x0``, any other to have one row per sample.
    """

    x0: Tensor
    layout: Layout
    cond: Condition = field(default_factory=Condition)

    def select(self, rows_B: Tensor) -> Batch:
        """The samples with these indices, as a batch of the same class."""
        length, layout = len(self.x0), self.layout.select(self.x0, rows_B)[1]

        def chosen(tensor: Tensor) -> Tensor:
            return self.layout.select(tensor, rows_B)[0] if len(tensor) == length else tensor[rows_B]

        return replace(_changed(self, chosen, lambda cond: cond.select(rows_B)), layout=layout)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device. A layout that is there already stays the same object, with its cache."""
        there = _changed(self, lambda tensor: moved(tensor, device), lambda cond: cond.to(device))
        return replace(there, layout=self.layout.to(device))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with ``change`` applied to each of its tensors, those of the condition included, on this layout."""
        return _changed(self, change, lambda cond: _changed(cond, change))

    def cast(self, dtype: torch.dtype) -> Batch:
        """The batch with every floating-point tensor converted to ``dtype``."""
        return self.mapped(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


def _changed(
    value: V, tensor: Callable[[Tensor], Tensor], cond: Callable[[Condition], Condition] = lambda cond: cond
) -> V:
    """A copy with ``tensor`` applied to each tensor among the fields, those of derived classes included."""

    def changed(old: Any) -> Any:
        if isinstance(old, Tensor):
            return tensor(old)
        if isinstance(old, Mapping):
            return {key: changed(item) for key, item in old.items()}
        return cond(old) if isinstance(old, Condition) else old

    return replace(value, **{item.name: changed(getattr(value, item.name)) for item in fields(value) if item.init})
