"""Tiles of the norm kernels, and how many rows a program instance sums over."""

from __future__ import annotations

from functools import lru_cache

from fewstep_kernels.tuning import Tile

WIDEST = 8192  # most channels of a row, which a program instance holds in registers
MANY = 4096  # rows that fill a GPU
PROGRAMS = 1024  # enough for any GPU, and few enough that their partial sums are small
FORWARD = ((2048, 4), (4096, 4))  # elements of a tile, warps: 16 or 32 elements per thread
BACKWARD = ((2048, 4), (2048, 8))  # holds more tiles at a time


@lru_cache(maxsize=256)
def block(width: int) -> int:
    """The smallest power of two that holds a width, at least 16, for ``tl.arange``."""
    return max(16, 1 << (width - 1).bit_length())


def many(rows: int) -> bool:
    """Whether the rows fill a GPU: all that the choice of a tile may know about their number."""
    return rows >= MANY


def span(rows: int, least: int = 16) -> int:
    """Rows that one program instance sums over."""
    return max(least, -(-rows // PROGRAMS))


@lru_cache(maxsize=64)
def tiles(size: str, columns: int, backward: bool) -> tuple[Tile, ...]:
    """Candidates for rows of this block; wider rows than a tile's numbers get more warps.

    Args:
        size: the constexpr that counts a tile's rows.
        columns: a power of two.
        backward: for the kernel of the gradients.
    """
    found: dict[tuple[int, int], None] = {}
    for numbers, warps in BACKWARD if backward else FORWARD:
        rows, wide = max(1, numbers // columns), max(1, columns // numbers)
        found[rows, min(16, warps * wide)] = None
    return tuple(Tile({size: rows}, warps, 1) for rows, warps in found)
