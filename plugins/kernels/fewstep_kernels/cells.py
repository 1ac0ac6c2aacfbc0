"""Arguments of the kernels that compute cell numbers (``cells_jit``)."""

from __future__ import annotations

from typing import Any

from fewstep_shapes3d.sparse.geometry import check_coords
from fewstep_shapes3d.sparse.grid import Grid
from torch.func import debug_unwrap

from fewstep.core.layout import Packed

BLOCK = 256  # rows per program instance


def cell_arguments(layout: Packed, grid: Grid, size: int = 1, shift: int = 0) -> tuple[Any, ...]:
    """Arguments of ``cells_jit.cell_of`` for the cells (coord + shift) // size of a grid, tensors before integers."""
    coords = debug_unwrap(check_coords(layout))
    low = [size * a - shift for a in grid.low]
    return coords, debug_unwrap(layout.index), layout.rows, *coords.stride(), *low, size, *grid.steps[:3]


def programs(layout: Packed) -> int:
    """Program instances of a launch over all rows."""
    return -(-layout.rows // BLOCK)
