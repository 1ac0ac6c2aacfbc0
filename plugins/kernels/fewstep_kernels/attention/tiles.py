"""The shipped tiles, each compiled by the ahead-of-time gate; the first of a list is the default."""

from __future__ import annotations

from typing import Any

import torch

from fewstep_kernels.tuning import Tile

KINDS = ("forward", "tangent", "keys", "keys-atomic", "queries")


def tile(m: int, n: int, warps: int, stages: int) -> Tile:
    """BLOCK_M queries by BLOCK_N keys."""
    return Tile({"BLOCK_M": m, "BLOCK_N": n}, warps, stages)


# The kernel of rowsum(out * grad), which runs before the backward kernels.
DELTA = Tile({"BLOCK_M": 64}, warps=4, stages=2)
# Two variants of the backward pass, autotuned like tiles: one kernel with an atomic sum, or two kernels.
ATOMIC, SEPARATE = Tile({"ATOMIC": 1}), Tile({"ATOMIC": 0})
WAYS = (ATOMIC, SEPARATE)
# By kind: for heads of up to 64 channels, then of up to 128. Half precision, on tensor cores.
HALF = {
    "forward": (
        [tile(128, 64, 4, 3), tile(128, 128, 8, 2), tile(128, 64, 8, 3), tile(64, 64, 4, 3)],
        [tile(128, 64, 8, 3), tile(128, 128, 8, 2), tile(64, 64, 4, 3)],
    ),
    "tangent": ([tile(128, 64, 8, 2), tile(64, 64, 4, 2)], [tile(128, 16, 8, 2)]),
    "keys": ([tile(64, 128, 8, 2), tile(64, 64, 4, 2)], [tile(64, 64, 8, 2), tile(32, 64, 4, 2)]),
    "keys-atomic": ([tile(64, 128, 8, 2), tile(64, 64, 4, 2)], [tile(64, 64, 8, 2), tile(32, 64, 8, 2)]),
    "queries": ([tile(128, 64, 8, 2), tile(64, 64, 4, 3)], [tile(64, 64, 8, 2), tile(64, 32, 4, 2)]),
}
# Short sequences, such as windows: a tile that is mostly empty costs as much as a full one.
SHORT = {
    "forward": ([tile(64, 64, 4, 3), tile(64, 32, 4, 3)], [tile(64, 32, 4, 2), tile(64, 64, 4, 2)]),
    "tangent": ([tile(64, 64, 4, 2), tile(64, 32, 4, 2)], [tile(64, 16, 8, 2), tile(128, 16, 8, 2)]),
    "keys": ([tile(64, 64, 4, 2), tile(32, 64, 4, 2)], [tile(32, 64, 4, 2)]),
    "keys-atomic": ([tile(64, 64, 4, 2), tile(32, 64, 4, 2)], [tile(32, 64, 8, 2)]),
    "queries": ([tile(64, 64, 4, 2), tile(64, 32, 4, 2)], [tile(64, 32, 4, 2)]),
}
# Exact float32, without tensor cores: every thread holds whole rows of both operands, so tiles are small.
SINGLE = {
    "forward": ([tile(64, 32, 8, 2)], [tile(32, 32, 8, 2)]),
    "tangent": ([tile(16, 16, 8, 2)], [tile(16, 16, 8, 2)]),
    "keys": ([tile(32, 32, 8, 2)], [tile(16, 16, 8, 2)]),
    "keys-atomic": ([tile(32, 32, 8, 2)], [tile(16, 16, 8, 2)]),
    "queries": ([tile(32, 32, 8, 2)], [tile(32, 16, 8, 2)]),
}
# float32 products in tf32, where torch allows it.
RELAXED = {
    "forward": ([tile(64, 32, 4, 2)], [tile(64, 16, 4, 2)]),
    "tangent": ([tile(64, 32, 4, 2)], [tile(128, 16, 8, 2)]),
    "keys": ([tile(32, 64, 4, 2)], [tile(16, 64, 4, 2)]),
    "keys-atomic": ([tile(32, 64, 4, 2)], [tile(16, 64, 4, 2)]),
    "queries": ([tile(64, 32, 4, 2)], [tile(64, 16, 4, 2)]),
}


def variant(kind: str, dtype: torch.dtype, head: int, exact: bool) -> dict[str, Any]:
    """Constants of a kernel that depend on type and head width, and keep it from spilling registers.

    Args:
        kind, dtype, head, exact: as of :func:`candidates`.
    """
    single, wide = dtype == torch.float32, head > 64
    if kind == "forward":
        return {"FIRST": int(single and exact)}
    if kind == "tangent":
        return {"FIRST": int(single and (exact or wide)), "AGAIN": single and exact and wide}
    return {}


def candidates(kind: str, dtype: torch.dtype, head: int, short: bool, exact: bool = True) -> list[Tile]:
    """The shipped tiles for a kernel.

    Args:
        kind: one of ``KINDS``.
        dtype: of queries and keys.
        head: channels of a head.
        short: sequences are short (:attr:`Sequences.short`).
        exact: float32 products are not rounded to tf32.
    """
    single = SINGLE if exact else RELAXED
    table = single if dtype == torch.float32 else SHORT if short else HALF
    return table[kind][head > 64]
