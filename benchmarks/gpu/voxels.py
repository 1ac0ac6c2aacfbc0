"""Synthetic voxels: shells, as sparse as the surfaces of real objects."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from fewstep_shapes3d.sparse.geometry import pooling
from torch import Tensor

from benchmarks.gpu.bench import Bench
from fewstep.core.layout import Packed

EDGE = 64


@lru_cache(maxsize=32)
def shell(count: int, edge: int = EDGE) -> Tensor:
    """[count, 3] the voxels nearest to a wavy sphere in an ``edge``^3 grid, sorted by their coordinates."""
    places = torch.cartesian_prod(*[torch.arange(edge)] * 3)
    offset = (places + 0.5) / edge - 0.5
    angle = torch.atan2(offset[:, 1], offset[:, 0])
    radius = 0.36 + 0.03 * torch.sin(5 * angle) + 0.03 * torch.cos(9 * offset[:, 2])
    nearest = (offset.norm(dim=1) - radius).abs().argsort()[:count]
    return places[nearest.sort().values].int()


def object_layout(bench: Bench, counts: Sequence[int], edge: int = EDGE) -> Packed:
    """The layout of objects with these numbers of voxels."""
    coords = torch.cat([shell(count, edge) for count in counts])
    return Packed.of_lengths(list(counts), coords, "cpu").to(bench.device)


def fresh(layout: Packed) -> Packed:
    """The same layout with an empty cache."""
    return Packed(layout.cu_seqlens, layout.coords)


@lru_cache(maxsize=8)
def voxels_for(tokens: int, edge: int = EDGE) -> int:
    """How many voxels of a shell pool to about this many tokens (2 x 2 x 2 to one)."""
    low, high = tokens, min(8 * tokens, edge**3)
    while high - low > 64:
        middle = (low + high) // 2
        found = pooling(Packed.of_lengths([middle], shell(middle, edge))).coarse.rows
        low, high = (middle, high) if found < tokens else (low, middle)
    return high
