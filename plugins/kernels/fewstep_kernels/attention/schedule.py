"""Which rows attend to which, as the kernels read it: 32-bit boundaries, tiles and, for windows, an order of rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fewstep.core.layout import Packed

SHORT = 256  # sequences up to this length are served by small tiles


@dataclass(frozen=True, eq=False)
class Sequences:
    """Queries and keys of the same samples (or windows).

    Args:
        q: layout of the queries.
        k: layout of the keys.
        order: for windows: the row that lies at each place of the layouts, so that nothing is copied into window
            order; None where rows lie as the layouts say.
    """

    q: Packed
    k: Packed
    order: Tensor | None = None

    @property
    def order32(self) -> Tensor | None:
        """``order`` in 32 bits."""
        order = self.order
        return None if order is None else self.q.once("order32", lambda: order.to(torch.int32))

    def know(self, order32: Tensor) -> None:
        """Keep an ``order`` in 32 bits that is there already."""
        self.q.once("order32", lambda: order32)

    @property
    def short(self) -> bool:
        """Whether small tiles fit better: a bucket of lengths, the only thing about them that tuning may see."""
        return self.q.once("short", lambda: max(self.q.lengths_list + self.k.lengths_list) <= SHORT, beside=self.k)


def bounds(layout: Packed) -> Tensor:
    """int32 [B + 1] boundaries."""
    return layout.once("bounds32", lambda: layout.cu_seqlens.to(torch.int32))


def tiles(rows: Packed, others: Packed, block: int) -> Tensor:
    """int32 [N, 2]: (sample, first row within it) of each tile of ``block`` rows; those with most work come first.

    ``others`` are the rows that a tile loops over. Made on the host from the lengths that it knows, once a layout.
    """
    return rows.once(("tiles", block), lambda: _tiles(rows, others, block), beside=others)


def _tiles(rows: Packed, others: Packed, block: int) -> Tensor:
    lengths, work = np.array(rows.lengths_list), np.array(others.lengths_list)
    counts = -(-lengths // block)
    sample = np.repeat(np.arange(len(lengths)), counts)
    first = np.arange(len(sample)) - np.repeat(counts.cumsum() - counts, counts)
    # Long ones first: started last, one of them would keep the whole GPU waiting at the end.
    heavy = np.argsort(-work[sample], kind="stable")
    found = np.stack([sample, first * block], 1)[heavy].astype(np.int32)
    return torch.from_numpy(found).to(rows.cu_seqlens.device)


@lru_cache(maxsize=64)
def uniform(batch: int, length: int, device: torch.device) -> Packed:
    """The layout of a dense batch [batch, length, ...] whose first two axes are joined."""
    with torch.inference_mode(False):
        return Packed.of_lengths([length] * batch, device=device)
