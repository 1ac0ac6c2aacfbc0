"""The tiles that are shipped; the first of a list is the default."""

from __future__ import annotations

import torch

from fewstep_kernels.tuning import Tile

KINDS = ("convolve", "outer")


def tile(m: int, n: int, k: int, warps: int, stages: int) -> Tile:
    """Of the product's M, N and inner size: voxels, output channels, input channels; for "outer" input channels,
    output channels, pairs."""
    return Tile({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}, warps, stages)


# By kind: up to 64 output channels, then more. The rows are read by an index that is read itself, which takes stages of
# its own: two blocks of them are under way with 3 or 4 stages, three with 5. The wide tiles read them half as often.
HALF = {
    "convolve": (
        [tile(128, 64, 32, 4, 4), tile(64, 64, 64, 4, 3), tile(64, 64, 64, 4, 5)],
        [
            tile(128, 128, 64, 8, 3),
            tile(128, 64, 64, 4, 4),
            tile(64, 128, 64, 4, 3),
            tile(128, 128, 64, 8, 5),
            tile(128, 256, 64, 8, 5),
            tile(256, 128, 64, 8, 3),
        ],
    ),
    "outer": (
        [tile(64, 64, 64, 4, 3), tile(64, 64, 64, 4, 5)],
        [tile(128, 128, 64, 8, 3), tile(64, 64, 64, 4, 3), tile(128, 128, 64, 8, 5), tile(256, 128, 64, 8, 3)],
    ),
}
SINGLE = {
    "convolve": ([tile(64, 64, 16, 8, 2)], [tile(64, 64, 16, 8, 2)]),
    "outer": ([tile(64, 64, 16, 8, 2)], [tile(64, 64, 16, 8, 2)]),
}
RELAXED = {
    "convolve": ([tile(64, 64, 32, 4, 3)], [tile(128, 64, 32, 4, 3)]),
    "outer": ([tile(64, 64, 32, 4, 3)], [tile(64, 64, 32, 4, 3)]),
}


def candidates(kind: str, dtype: torch.dtype, channels: int, exact: bool = True) -> list[Tile]:
    """The shipped tiles.

    Args:
        kind: one of ``KINDS``.
        dtype: of the voxels and weights.
        channels: of the output.
        exact: float32 products are not rounded to tf32.
    """
    single = SINGLE if exact else RELAXED
    return (single if dtype == torch.float32 else HALF)[kind][channels > 64]
