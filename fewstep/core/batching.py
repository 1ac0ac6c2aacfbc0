"""Which samples a micro-batch sees: a function of (seed, step, rank) alone, so that there is no state to save.

The training order is an endless stream of seeded permutations of the data set, one per epoch. A step takes the next
samples in this order and divides them among its micro-batches (ranks). No sample is skipped at the end of an epoch, and
none is taken twice within one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch

Sort = Literal["stable", "quicksort"]
SPREAD = 0x9E3779B1  # spreads seeds over the 32 bits that torch's CPU generator looks at; odd: no two collide


def balanced_groups(
    loads: Sequence[int], groups: int, most: int | None = None, sort: Sort = "stable"
) -> list[list[int]]:
    """Indices in groups of nearly equal load: the heaviest item first, each to the group with the least load so far.

    Ties follow TRELLIS: of equal loads the later one comes first; of equally loaded groups the first takes the item.

    Args:
        loads: the load of each item.
        groups: number of groups; with fewer items than groups some stay empty.
        most: largest number of items in a group. Once all groups are full, the remaining items go to the first.
        sort: numpy's kind of sort. The reference uses "quicksort", whose order of equal loads depends on the processor.
    """
    filled: list[list[int]] = [[] for _ in range(groups)]
    totals, spare = [0] * groups, list(range(groups))
    for item in np.argsort(np.asarray(loads, dtype=np.int64), kind=sort)[::-1].tolist():
        group = min(spare, key=totals.__getitem__, default=0)
        filled[group].append(item)
        totals[group] += int(loads[item])
        if len(filled[group]) == most and group in spare:
            spare.remove(group)
    return filled


def training_order(count: int, seed: int, start: int, stop: int) -> list[int]:
    """The samples at these positions of the training order, for a data set of ``count`` samples."""
    return [_epoch(count, seed, position // count)[position % count] for position in range(start, stop)]


@lru_cache(maxsize=4)  # a step may straddle two epochs
def _epoch(count: int, seed: int, epoch: int) -> list[int]:
    draws = torch.Generator().manual_seed((seed * SPREAD + epoch) % 2**32)
    order: list[int] = torch.randperm(count, generator=draws).tolist()
    return order


class Cuts:
    """The training order cut into steps whose samples fit into ``ranks`` micro-batches of at most ``budget`` rows each.

    A step takes as many of the next samples as fit. Where it begins depends on all steps before it, so a resumed run
    recomputes them, which takes milliseconds per step.

    Args:
        loads: rows of each sample, none above ``budget``.
        most: largest number of samples in a micro-batch, however short they are.
    """

    def __init__(self, seed: int, loads: Sequence[int], budget: int, ranks: int, most: int) -> None:
        self.seed, self.budget, self.ranks, self.most = seed, budget, ranks, most
        self.loads = [max(int(load), 1) for load in loads]  # a sample without rows still needs a place
        self.starts = [0]

    def micro_batches(self, step: int) -> list[list[int]]:
        """The samples of a step by micro-batch, each in training order."""
        while len(self.starts) <= step:
            self.starts.append(self.starts[-1] + sum(map(len, self._packed(self.starts[-1]))))
        return self._packed(self.starts[step])

    def _packed(self, start: int) -> list[list[int]]:
        samples = training_order(len(self.loads), self.seed, start, start + self.most * self.ranks)
        loads = [self.loads[sample] for sample in samples]
        fitting = int(np.searchsorted(np.cumsum(loads), self.budget * self.ranks, side="right"))
        for count in range(max(fitting, self.ranks), self.ranks, -1):
            groups = balanced_groups(loads[:count], self.ranks, self.most)
            if all(sum(loads[i] for i in group) <= self.budget for group in groups):
                return [[samples[i] for i in sorted(group)] for group in groups]
        return [[sample] for sample in samples[: self.ranks]]  # one sample per micro-batch always fits
