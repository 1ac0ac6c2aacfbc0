"""Rotary position embedding of voxels: the tables by which ``fewstep.ops.qk_rms_norm`` rotates queries and keys."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from fewstep_trellis.models.embeddings import grid_coords
from torch import Tensor

from fewstep.ops.norms import Rotary

FREQUENCIES = (1.0, 10000.0)  # largest frequency, and the factor down to the smallest


def rotary_tables(coords: Tensor, width: int, frequencies: tuple[float, float] = FREQUENCIES) -> Rotary:
    """Cosines and sines of the angles of each pair of channels.

    Each axis rotates n = floor(width / 6) pairs, those of x first, then of y, then of z, by its position times
    ``first / ratio^(i / n)``, i = 0 ... n - 1. The remaining pairs are not rotated.

    Args:
        coords: ``[T, 3]`` positions in the grid.
        width: of a head.
        frequencies: (first, ratio).

    Returns:
        Two float32 tables ``[T, width / 2]``.
    """
    count = width // (2 * coords.shape[1])
    steps = torch.arange(count, dtype=torch.float32, device=coords.device) / max(count, 1)
    angles = (coords[..., None].float() * (frequencies[0] / frequencies[1] ** steps)).flatten(1)
    angles = F.pad(angles, (0, width // 2 - angles.shape[1]))
    return angles.cos(), angles.sin()


@lru_cache(maxsize=8)
def grid_tables(size: int, width: int, device: torch.device) -> Rotary:
    """The tables of a cubic grid, made once: a copy to the device cannot be recorded in a CUDA graph."""
    with torch.inference_mode(False):  # made for a sampler, they may serve a later pass that needs gradients
        return rotary_tables(grid_coords(size).to(device), width)
