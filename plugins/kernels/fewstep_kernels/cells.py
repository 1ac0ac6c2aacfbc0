"""Arguments of the kernels that number cells."""

from __future__ import annotations

from typing import Any

from fewstep_shapes3d.sparse.geometry import check_coords
from fewstep_shapes3d.sparse.grid import Grid
from torch.func import debug_unwrap

from fewstep.core.layout import Packed

BLOCK = 256  # rows of a program


def cell_arguments(layout: Packed, grid: Grid, size: int = 1, shift: int = 0) -> tuple[Any, ...]:
    """Of ``cells_jit.cell_of``: coordinates and samples, then numbers, for cells (coord + shift) // size in a grid."""
    coords = debug_unwrap(check_coords(layout))
    low = [size * a - shift for a in grid.low]
    return coords, debug_unwrap(layout.index), layout.rows, *coords.stride(), *low, size, *grid.steps[:3]


def programs(layout: Packed) -> int:
    """That a launch over all rows takes."""
    return -(-layout.rows // BLOCK)
