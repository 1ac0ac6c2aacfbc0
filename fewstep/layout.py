"""How a batch of samples lies in memory: ``Dense`` or ``Packed``, beside plain tensors and never inside them.

An objective that reduces, broadcasts and draws only through its layout serves an image-like [B, C, H, W] tensor and
a ragged [T, C] one with the same lines.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from fewstep.errors import FewstepError


@runtime_checkable
class Layout(Protocol):
    """What an objective may ask of the arrangement of its samples. ``*_B`` tensors have one value a sample."""

    @property
    def batch_size(self) -> int: ...
    def expand(self, v_B: Tensor, like: Tensor) -> Tensor: ...
    def sum(self, x: Tensor) -> Tensor: ...
    def mean(self, x: Tensor) -> Tensor: ...
    def norm(self, x: Tensor) -> Tensor: ...
    def select(self, x: Tensor, rows_B: Tensor) -> tuple[Tensor, Layout]: ...


@dataclass(frozen=True)
class Dense:
    """Samples of one shape: x is [B, ...]."""

    batch_size: int

    def expand(self, v_B: Tensor, like: Tensor) -> Tensor:
        """[B] -> [B, 1, ...], broadcastable against ``like`` [B, ...]; float64 times keep the dtype of ``like``."""
        return v_B.to(like.dtype).reshape(self.batch_size, *[1] * (like.dim() - 1))

    def sum(self, x: Tensor) -> Tensor:
        """[B, ...] -> [B]: the sum over all elements of each sample."""
        return x.reshape(self.batch_size, -1).sum(1)

    def mean(self, x: Tensor) -> Tensor:
        """[B, ...] -> [B]: the mean over all elements of each sample."""
        return x.reshape(self.batch_size, -1).mean(1)

    def norm(self, x: Tensor) -> Tensor:
        """[B, ...] -> [B]: the Euclidean norm of each sample over all its elements."""
        return self.sum(x.square()).sqrt()

    def select(self, x: Tensor, rows_B: Tensor) -> tuple[Tensor, Dense]:
        """The samples ``rows_B`` (indices, int64) and their layout."""
        return x[rows_B], Dense(len(rows_B))


@dataclass(frozen=True)
class Packed:
    """Ragged samples one behind the other: x is [T, C], sample i owns rows cu_seqlens[i] to cu_seqlens[i + 1].

    Args:
        cu_seqlens: int64 [B + 1], non-decreasing, from 0 to T. A sample of length 0 is allowed.
        coords: optional integer coordinates [T, 3] or [T, 4], carried for backbones that need positions.

    Raises:
        FewstepError: for boundaries that are not a non-decreasing vector from 0.
    """

    cu_seqlens: Tensor
    coords: Tensor | None = None
    index: Tensor = field(init=False)

    def __post_init__(self) -> None:
        bounds = self.cu_seqlens
        if bounds.dim() != 1 or len(bounds) < 2 or int(bounds[0]) != 0 or bool((bounds.diff() < 0).any()):
            raise FewstepError(
                f"layout.cu_seqlens: got {bounds.tolist()}; accepted: a non-decreasing vector that starts at 0"
            )
        rows = torch.arange(len(bounds) - 1, device=bounds.device)
        object.__setattr__(self, "index", rows.repeat_interleave(bounds.diff()))

    @classmethod
    def of_lengths(cls, lengths: list[int], coords: Tensor | None = None) -> Packed:
        """The layout of samples with these numbers of rows."""
        return cls(torch.tensor([0, *lengths]).cumsum(0), coords)

    @property
    def batch_size(self) -> int:
        return len(self.cu_seqlens) - 1

    @property
    def lengths(self) -> Tensor:
        """[B] rows of each sample."""
        return self.cu_seqlens.diff()

    def expand(self, v_B: Tensor, like: Tensor) -> Tensor:
        """[B] -> [T, 1, ...], broadcastable against ``like`` [T, ...]."""
        return v_B.to(like.dtype)[self.index].reshape(-1, *[1] * (like.dim() - 1))

    def sum(self, x: Tensor) -> Tensor:
        """[T, ...] -> [B]; ``index_add`` because ``segment_reduce`` has no forward-mode derivative."""
        rows = x.flatten(1).sum(1) if x.dim() > 1 else x
        return torch.zeros(self.batch_size, dtype=x.dtype, device=x.device).index_add(0, self.index, rows)

    def mean(self, x: Tensor) -> Tensor:
        """[T, ...] -> [B]: the mean over all rows and channels of each sample; 0 for an empty one."""
        width = x[0].numel() if len(x) else 1
        return self.sum(x) / (self.lengths * width).clamp(min=1).to(x.dtype)

    def norm(self, x: Tensor) -> Tensor:
        """[T, ...] -> [B]: the Euclidean norm of each sample over all its rows and channels."""
        return self.sum(x.square()).sqrt()

    def select(self, x: Tensor, rows_B: Tensor) -> tuple[Tensor, Packed]:
        """The samples ``rows_B`` in that order, and their layout."""
        bounds = self.cu_seqlens.tolist()
        spans = [torch.arange(bounds[i], bounds[i + 1], device=x.device) for i in rows_B.tolist()]
        rows = torch.cat(spans) if spans else torch.zeros(0, dtype=torch.int64, device=x.device)
        coords = None if self.coords is None else self.coords[rows]
        return x[rows], Packed.of_lengths([len(span) for span in spans], coords)


def reduce_mean(x: Tensor, layout: Layout, how: str) -> Tensor:
    """The loss over a batch: "element" is the mean over all elements (a longer sample weighs more, as published),
    "sample" the mean over samples of each one's own mean."""
    return x.mean() if how == "element" else layout.mean(x).mean()
