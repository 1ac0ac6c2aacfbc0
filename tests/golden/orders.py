"""Cases of the order of samples: the published samplers on several ranks, and the rule that balances groups."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from fewstep_trellis.official.published import balanced_ranks, epoch_order, plain_ranks

from fewstep.core.batching import balanced_groups
from golden.cases import Case, Check, Record, exact, label

# numpy's own order of equal loads depends on the processor: either is the published rule.
SORTS: tuple[Literal["quicksort", "stable"], ...] = ("quicksort", "stable")


def run_sampler(loads: list[int], one: Record) -> list[Check]:
    """The index lists of all ranks of an epoch, from a saved place on."""
    order = epoch_order(
        len(loads), one["world_size"], one["seed"], one["epoch"], shuffle=one["shuffle"], drop_last=one["drop_last"]
    )
    ours = [plain_ranks(order, one["world_size"])]
    if one["cls"] == "BalancedResumableSampler":
        ours = [balanced_ranks(order, loads, one["world_size"], one["batch_size"], sort) for sort in SORTS]
    return [exact("ranks", one["ranks"] in [[rank[one["idx"] :] for rank in ranks] for ranks in ours])]


def run_groups(one: Record) -> list[Check]:
    """The grouping rule alone."""
    most = len(one["loads"]) // one["num_groups"] if one["equal_size"] else None
    ours = [balanced_groups(one["loads"], one["num_groups"], most, sort) for sort in SORTS]
    return [exact("groups", one["groups"] in ours)]


def _name(i: int, one: Record) -> str:
    return f"{i}-{one['cls']}-{one['world_size']}x{one['batch_size']}"


def cases(root: Path, path: Path, record: Record) -> list[Case]:
    """The cases of a record, if it is one of samplers."""
    if not {"loads", "cases", "groups"} <= record.keys():
        return []
    samplers = [
        Case(label(root, path, _name(i, one)), partial(run_sampler, record["loads"], one))
        for i, one in enumerate(record["cases"])
    ]
    groups = [
        Case(label(root, path, f"groups-{i}"), partial(run_groups, one)) for i, one in enumerate(record["groups"])
    ]
    return samplers + groups
