"""Which samples a micro-batch sees: a function of (seed, step, rank) alone, so that there is no state to save.

The training order is an endless stream of seeded permutations of the data set, one an epoch. A step takes the next
samples of the stream and divides them among its micro-batches (ranks). No sample is skipped at the end of an epoch, and
none is taken twice within one.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

Sort = Literal["stable", "quicksort"]
ODD = 0x9E3779B1  # odd, so that no two seeds below 2^32 share their first epoch


def balanced_groups(
    loads: Sequence[int], groups: int, most: int | None = None, sort: Sort = "stable"
) -> list[list[int]]:
    """Indices in groups of nearly equal load: the heaviest first, each to the group with the least so far.

    TRELLIS's rule: of equal loads the later one comes first, of equal groups the first one takes it.

    Args:
        loads: of each item.
        groups: how many; with fewer items than groups some stay empty.
        most: a group with so many items takes no more. Once all are full, what is left goes to the first.
        sort: numpy's kind. The reference uses "quicksort", which orders equal loads as the processor likes.
    """
    found: list[list[int]] = [[] for _ in range(groups)]
    open_groups = [(0, group) for group in range(groups)]  # (load so far, group): a heap
    for item in np.argsort(np.asarray(loads, dtype=np.int64), kind=sort)[::-1].tolist():
        load, group = open_groups[0] if open_groups else (0, 0)
        found[group].append(item)
        if most is not None and len(found[group]) == most and open_groups:
            heapq.heappop(open_groups)
        elif open_groups:
            heapq.heapreplace(open_groups, (load + int(loads[item]), group))
    return found


class Stream:
    """The samples in training order, by position.

    Args:
        count: samples of the data set.
        seed: epoch e is the permutation that a generator draws with the seed ``seed * ODD + e`` modulo 2^32:
            torch's generator on a CPU looks at the lower 32 bits alone.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._orders: dict[int, list[int]] = {}

    def take(self, start: int, stop: int) -> list[int]:
        """The samples at these positions."""
        return [self._order(position // self.count)[position % self.count] for position in range(start, stop)]

    def _order(self, epoch: int) -> list[int]:
        if epoch not in self._orders:
            draws = torch.Generator().manual_seed((self.seed * ODD + epoch) % 2**32)
            kept = {e: order for e, order in self._orders.items() if e == epoch - 1}  # a step may straddle two
            self._orders = {**kept, epoch: torch.randperm(self.count, generator=draws).tolist()}
        return self._orders[epoch]


class Cuts:
    """The stream cut into steps whose samples fit into ``ranks`` micro-batches of at most ``budget`` rows each.

    A step takes as many of the next samples as fit. Where it begins depends on all steps before it, so a resumed run
    computes these again, which takes milliseconds a step.

    Args:
        loads: rows of each sample, none above ``budget``.
        most: largest number of samples of a micro-batch, however short they are.
    """

    def __init__(self, stream: Stream, loads: Sequence[int], budget: int, ranks: int, most: int) -> None:
        self.stream, self.budget, self.ranks, self.most = stream, budget, ranks, most
        self.loads = [max(int(load), 1) for load in loads]  # a sample without rows still needs a place
        self.starts = [0]

    def micro_batches(self, step: int) -> list[list[int]]:
        """The samples of a step by micro-batch, each in the order of the stream."""
        while len(self.starts) <= step:
            self.starts.append(self.starts[-1] + sum(map(len, self._packed(self.starts[-1]))))
        return self._packed(self.starts[step])

    def _packed(self, start: int) -> list[list[int]]:
        samples = self.stream.take(start, start + self.most * self.ranks)
        loads = [self.loads[sample] for sample in samples]
        fitting = int(np.searchsorted(np.cumsum(loads), self.budget * self.ranks, side="right"))
        for count in range(max(fitting, self.ranks), self.ranks, -1):
            found = balanced_groups(loads[:count], self.ranks, self.most)
            if all(sum(loads[i] for i in group) <= self.budget for group in found):
                return [[samples[i] for i in sorted(group)] for group in found]
        return [[sample] for sample in samples[: self.ranks]]  # one each fits always
