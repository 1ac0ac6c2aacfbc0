"""Sums over rows that share an index."""

from __future__ import annotations

import torch
from torch import Tensor


def add_rows(x: Tensor, index: Tensor, count: int) -> Tensor:
    """[T, ...] to [count, ...]: row i is the sum of the rows whose ``index`` [T] is i.

    ``index_add``, because ``segment_reduce`` has no forward-mode derivative; inside torch.compile ``scatter_add``,
    because inductor (2.11 to 2.13) miscompiles the tangent of an ``index_add`` onto zeros, without a word.
    """
    zeros = x.new_zeros(count, *x.shape[1:])
    if torch.compiler.is_dynamo_compiling():
        return zeros.scatter_add(0, index.reshape(-1, *[1] * (x.dim() - 1)).expand_as(x), x)
    return zeros.index_add(0, index, x)
