"""Rows and samples as the kernels read them, dense or packed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor
from torch.func import debug_unwrap

from fewstep.core.layout import Packed
from fewstep_kernels.norms.tiles import span


def rows_of(x: Tensor) -> Tensor:
    """[..., C] as [T, C] with contiguous channels; a view where possible."""
    x = x.flatten(0, -2)
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def maybe_rows(x: Tensor | None) -> Tensor | None:
    """:func:`rows_of`, or None."""
    return None if x is None else rows_of(x)


def row_strides(*tensors: Tensor | None) -> list[int]:
    """The row stride of each tensor, 0 for None."""
    return [0 if x is None else x.stride(0) for x in tensors]


def row_steps(*tensors: Tensor) -> list[int] | None:
    """The row stride of each [B, L, C] or [T, C]; None where :func:`rows_of` would have to copy one of them."""
    found: list[int] = []
    for x in tensors:
        strides = x.stride()
        if strides[-1] != 1 or (x.ndim == 3 and strides[0] != x.shape[1] * strides[1]):
            return None
        found += (strides[-2],)
    return found


def promoted(*tensors: Tensor) -> torch.dtype:
    """The common type by torch's promotion rules."""
    return reduce(torch.promote_types, (x.dtype for x in tensors))


def empty_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous tensor of the shape of x."""
    return torch.empty(x.shape, dtype=dtype, device=x.device)


@dataclass(frozen=True)
class Samples:
    """Which rows of x belong to which sample: x is [B, L, C], or [T, C] packed.

    A layout that was made inside a ``torch.func`` transform (by pooling, say) has wrapped tensors, and kernels need the
    plain ones beneath. They are integers and have no derivatives.
    """

    layout: Packed | None

    def index(self) -> Tensor | None:
        return None if self.layout is None else debug_unwrap(self.layout.index)

    def bounds(self) -> Tensor | None:
        return None if self.layout is None else debug_unwrap(self.layout.cu_seqlens)

    def length(self, x: Tensor) -> int:
        """Rows per sample of a dense batch; rows of the longest sample of a packed batch."""
        return x.shape[1] if self.layout is None else max(self.layout.lengths_list)

    def batch(self, x: Tensor) -> int:
        return len(x) if self.layout is None else self.layout.batch_size

    def programs(self, x: Tensor) -> tuple[int, int]:
        """Program instances per sample and rows per instance for sums over rows, as if all samples were the longest."""
        each = span(self.batch(x) * self.length(x))
        return -(-self.length(x) // each), each
