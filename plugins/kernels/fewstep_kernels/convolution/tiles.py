"""The shipped tiles; the first of a list is the default."""

from __future__ import annotations

import torch

from fewstep_kernels.tuning import Tile

KINDS = ("convolve", "outer")


def tile(m: int, n: int, k: int, warps: int, stages: int) -> Tile:
    """Block sizes of the product's M, N and inner K: voxels, output channels, input channels for "convolve"; input
    channels, output channels, pairs for "outer"."""
    return Tile({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}, warps, stages)


# By kind: for up to 64 output channels, then for more. Rows are gathered by an index that is itself loaded, which takes
# pipeline stages of its own: 3 or 4 stages keep two blocks of rows in flight, 5 keep three. Wide tiles read rows half
# as often.
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
