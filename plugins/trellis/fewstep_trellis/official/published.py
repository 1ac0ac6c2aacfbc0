"""TRELLIS's own order of samples and its split of a batch, reproduced exactly (``data.order=published``).

An epoch is padded from its own start to a multiple of the ranks (or cut), and the incomplete last batch is dropped.
``fewstep.core.batching`` does neither. Here too the position of a run is a function of its step; the reference saves
one that is a batch ahead of what was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fewstep.core.batching import Sort, balanced_groups
from fewstep.errors import invalid


def epoch_order(
    count: int, ranks: int, seed: int, epoch: int, *, shuffle: bool = True, drop_last: bool = False
) -> list[int]:
    """All samples of an epoch, padded or cut to a multiple of the ranks."""
    draws = torch.Generator().manual_seed(seed + epoch)
    order = torch.randperm(count, generator=draws).tolist() if shuffle else list(range(count))
    if drop_last:
        return order[: count // ranks * ranks]
    missing = -count % ranks
    return order + (order * (missing // count + 1))[:missing]


def plain_ranks(order: Sequence[int], ranks: int) -> list[list[int]]:
    """The structure stage's split: rank r takes places r, r + ranks, ..."""
    return [list(order[rank::ranks]) for rank in range(ranks)]


def balanced_ranks(
    order: Sequence[int], loads: Sequence[int], ranks: int, batch_size: int, sort: Sort = "stable"
) -> list[list[int]]:
    """The SLat stage's split: blocks of ``batch_size`` x ``ranks`` samples, each shared out by load in equal numbers.

    Args:
        loads: of every sample of the data set (``num_voxels`` of the table).
        sort: see ``balanced_groups``.
    """
    found: list[list[int]] = [[] for _ in range(ranks)]
    block = batch_size * ranks
    for start in range(0, len(order) - block + 1, block):
        samples = order[start : start + block]
        for rank, group in enumerate(balanced_groups([loads[i] for i in samples], ranks, batch_size, sort)):
            found[rank] += [samples[i] for i in group]
    return found


def split_batch(loads: Sequence[int], groups: int | None) -> list[list[int]]:
    """The SLat stage's micro-batches: places in the batch by group, of nearly equal load and any number of samples.

    None leaves the batch as it is; any number, 1 too, sorts it by falling load.
    """
    return [list(range(len(loads)))] if groups is None else balanced_groups(loads, groups)


def published_pass(
    count: int, loads: Sequence[int] | None, step: int, size: int, seed: int, rank: int, ranks: int
) -> list[int]:
    """The samples of a pass as a run of the reference in one process has them: batches of ``size`` x ``ranks`` samples,
    each in ``ranks`` micro-batches. ``loads`` None is the structure stage, whose micro-batches are slices.

    Raises:
        FewstepError: for fewer objects than a batch, of which the published order makes no batch at all.
    """
    batch = size * ranks
    if count < batch:
        raise invalid("data.order", "published", f"stream, with {count} objects and batches of {batch}")
    epoch, place = divmod(step, count // batch)
    samples = epoch_order(count, 1, seed, epoch)[place * batch : (place + 1) * batch]
    if loads is None:
        return samples[rank * size : (rank + 1) * size]
    (samples,) = balanced_ranks(samples, loads, 1, batch)
    return [samples[i] for i in split_batch([loads[i] for i in samples], ranks)[rank]]
