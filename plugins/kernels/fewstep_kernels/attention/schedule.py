"""Which rows attend to which, as the kernels read it: int32 boundaries, tiles and, for windows, an order of rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fewstep.core.layout import Packed

SHORT = 256  # sequences up to this length are served by small tiles
MOST, LEAST = 8, 8  # most stretches that queries are cut into, and least blocks in each
GAIN = 1.2  # least speed-up of a launch for which cutting pays for the extra sum over stretches
MULTIPROCESSORS, WARPS = 132, 8  # multiprocessors of an H100; warps per multiprocessor at a backward pass's registers


@dataclass(frozen=True, eq=False)
class Sequences:
    """Queries and keys of the same samples (or windows).

    Args:
        q: layout of the queries.
        k: layout of the keys.
        order: for windows, the row at each position of the layouts, so that nothing is copied into window order; None
            where rows are stored in the order of the layouts.
    """

    q: Packed
    k: Packed
    order: Tensor | None = None

    @property
    def order32(self) -> Tensor | None:
        """``order`` as int32."""
        order = self.order
        return None if order is None else self.q.once("order32", lambda: order.to(torch.int32))

    @property
    def most_queries(self) -> int:
        """The queries of the longest sample."""
        return self.q.once("longest", lambda: max(self.q.lengths_list))

    def know(self, order32: Tensor) -> None:
        """Cache an int32 ``order`` that already exists."""
        self.q.once("order32", lambda: order32)

    @property
    def short(self) -> bool:
        """Whether small tiles suit better. Of all lengths, autotuning may depend only on this bucket."""
        return self.q.once("short", lambda: max(self.q.lengths_list + self.k.lengths_list) <= SHORT, beside=self.k)


def bounds(layout: Packed) -> Tensor:
    """int32 [B + 1] boundaries."""
    return layout.once("bounds32", lambda: layout.cu_seqlens.to(torch.int32))


def tiles(rows: Packed, others: Packed, block: int) -> Tensor:
    """int32 [N, 2]: (sample, first row within it) of each tile of ``block`` rows; those with most work come first.

    ``others`` are the rows that a tile loops over. Computed on the host from known lengths, once per layout.
    """
    return rows.once(("tiles", block), lambda: _tiles(rows, others, block), beside=others)


def _tiles(rows: Packed, others: Packed, block: int) -> Tensor:
    lengths, work = np.array(rows.lengths_list), np.array(others.lengths_list)
    counts = -(-lengths // block)
    sample = np.repeat(np.arange(len(lengths)), counts)
    first = np.arange(len(sample)) - np.repeat(counts.cumsum() - counts, counts)
    # Long ones first: a long tile started last would run alone at the end.
    heavy = np.argsort(-work[sample], kind="stable")
    found = np.stack([sample, first * block], 1)[heavy].astype(np.int32)
    return torch.from_numpy(found).to(rows.cu_seqlens.device)


@lru_cache(maxsize=64)
def slots(device: torch.device, warps: int) -> int:
    """How many program instances with this many warps run concurrently."""
    count = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else MULTIPROCESSORS
    return count * max(1, WARPS // warps)


@lru_cache(maxsize=256)
def stretches(programs: int, places: int, blocks: int) -> int:
    """Into how many stretches the queries are cut, so that few keys fill a GPU too (against wave quantisation).

    176 programs on 132 slots take two waves, as long as 264; in three stretches they are 528, exactly four waves.

    Args:
        programs: program instances without cutting.
        places: program instances that run concurrently.
        blocks: blocks of queries that a program instance loops over.
    """
    times = {n: -(-programs * n // places) / n for n in range(1, MOST + 1) if n == 1 or blocks >= LEAST * n}
    best = min(times, key=lambda n: (times[n], n))
    return best if times[1] >= GAIN * times[best] else 1


@lru_cache(maxsize=64)
def uniform(batch: int, length: int, device: torch.device) -> Packed:
    """The layout of a dense batch [batch, length, ...] with its first two axes flattened."""
    with torch.inference_mode(False):
        return Packed.of_lengths([length] * batch, device=device)
