"""Rows and samples as the kernels see them, dense or packed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor
from torch.func import debug_unwrap

from fewstep.core.layout import Packed
from fewstep_kernels.norms.tiles import span


def rows_of(x: Tensor) -> Tensor:
    """[..., C] as [T, C] with its channels side by side; a view wherever the memory allows one."""
    x = x.flatten(0, -2)
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def maybe_rows(x: Tensor | None) -> Tensor | None:
    """:func:`rows_of`, or None."""
    return None if x is None else rows_of(x)


def row_strides(*tensors: Tensor | None) -> list[int]:
    """From row to row of each tensor, 0 for those that are None."""
    return [0 if x is None else x.stride(0) for x in tensors]


def row_steps(*tensors: Tensor) -> list[int] | None:
    """From row to row of each [B, L, C] or [T, C]; None where :func:`rows_of` would have to copy one of them."""
    found: list[int] = []
    for x in tensors:
        strides = x.stride()
        if strides[-1] != 1 or (x.ndim == 3 and strides[0] != x.shape[1] * strides[1]):
            return None
        found += (strides[-2],)
    return found


def promoted(*tensors: Tensor) -> torch.dtype:
    """The type that all of them have in common."""
    return reduce(torch.promote_types, (x.dtype for x in tensors))


def empty_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Of the shape of x, contiguous whatever x is."""
    return torch.empty(x.shape, dtype=dtype, device=x.device)


@dataclass(frozen=True)
class Samples:
    """Where the samples of a batch lie, for rows of x: [B, L, C], or [T, C] packed.

    A layout that was made inside a ``torch.func`` transform (by pooling, say) has wrapped tensors; kernels take the
    plain ones beneath. Both are integers without derivatives.
    """

    layout: Packed | None

    def index(self) -> Tensor | None:
        return None if self.layout is None else debug_unwrap(self.layout.index)

    def bounds(self) -> Tensor | None:
        return None if self.layout is None else debug_unwrap(self.layout.cu_seqlens)

    def length(self, x: Tensor) -> int:
        """Rows of each sample of a dense batch, of the longest one of a packed batch."""
        return x.shape[1] if self.layout is None else max(self.layout.lengths_list)

    def batch(self, x: Tensor) -> int:
        return len(x) if self.layout is None else self.layout.batch_size

    def programs(self, x: Tensor) -> tuple[int, int]:
        """Programs a sample for sums over its rows, and rows a program: as if all samples were the longest."""
        each = span(self.batch(x) * self.length(x))
        return -(-self.length(x) // each), each
