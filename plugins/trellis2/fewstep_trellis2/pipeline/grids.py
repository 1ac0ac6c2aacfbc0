"""Between the stages: which cells of a grid the next stage works on. Cells are int64 rows (sample, x, y, z)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.errors import invalid

LATENT = 16  # side of a latent's cell, in cells of the mesh's grid
DECODED = 512  # cells on a side of the grid that the coarse shape is decoded on in a cascade
STEP, LEAST = 128, 1024  # step by which the resolution is lowered, and its minimum


def occupied_cells(logits: Tensor, side: int) -> Tensor:
    """The occupied cells [N, 4] of structure logits [B, 1, R, R, R] on a grid of ``side``, in row-major order.

    A cell of a coarser grid is occupied if one of its parts is.

    Raises:
        FewstepError: a side that does not divide R.
    """
    full = logits.shape[-1]
    if full % side:
        raise invalid("side of the structure grid", side, f"a divisor of {full}")
    occupied = F.max_pool3d((logits > 0).float(), full // side)
    return occupied[:, 0].nonzero()


def finer_cells(coords: Tensor, resolution: int, limit: int) -> tuple[Tensor, int]:
    """The cells of the fine shape stage, sorted, and the resolution that they are for.

    The resolution is lowered in steps of 128 until the cells are fewer than ``limit``, but never below 1024.

    Args:
        coords: [N, 4] of the decoded coarse shape on a grid of 512.
        resolution: of the mesh that is asked for.
        limit: of the number of cells.
    """
    while True:
        side = resolution // LATENT
        # In float32 and truncated, as in the reference: the cells are part of the model's input.
        cells = ((coords[:, 1:] + 0.5) / DECODED * side).long()
        found = _unique(coords[:, :1].long(), cells, side)
        if len(found) < limit or resolution <= LEAST:
            return found, resolution
        resolution -= STEP


def _unique(sample: Tensor, cells: Tensor, side: int) -> Tensor:
    """Distinct rows (sample, x, y, z) in ascending order; a single key per row is many times faster than four."""
    x, y, z = cells.unbind(1)
    number = (((sample[:, 0] * side + x) * side + y) * side + z).unique()
    z, number = number % side, number // side
    y, number = number % side, number // side
    return torch.stack([number // side, number % side, y, z], 1)
