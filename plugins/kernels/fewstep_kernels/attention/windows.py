"""Windows of voxels by two kernels and a sort, in place of the twenty launches of torch's own ops."""

from __future__ import annotations

import torch
from fewstep_shapes3d.sparse.geometry import box
from fewstep_shapes3d.sparse.grid import Grid
from fewstep_shapes3d.sparse.windows import Windows, layout_of, plain_windows, windows
from torch import Tensor

from fewstep.core.layout import Packed
from fewstep.ops.inputs import plain
from fewstep_kernels.attention.schedule import Sequences
from fewstep_kernels.cells import BLOCK, cell_arguments, programs
from fewstep_kernels.support import on_its_device

LARGEST = 2**31  # below this many cells their numbers fit 32 bits, which sort in half the time


def sequences(layout: Packed, size: int, shift: int) -> Sequences:
    """The windows as queries and keys, cached on the layout."""
    found = windows(layout, size, shift, _built)
    return Sequences(found.layout, found.layout, found.order)


def _built(layout: Packed, size: int, shift: int) -> Windows:
    with torch.no_grad():
        addressable = plain((layout.cu_seqlens,), addresses=True)
    # Inside a torch.func transform new tensors may have no memory that a kernel could write to.
    if not layout.rows or not addressable:
        return plain_windows(layout, size, shift)
    return _launched(layout.cu_seqlens, layout, size, shift)


@on_its_device
def _launched(bounds: Tensor, layout: Packed, size: int, shift: int) -> Windows:
    from fewstep_kernels.attention import windows_jit

    grid, rows, device = Grid.coarse(box(layout), size, shift), layout.rows, bounds.device
    small = grid.steps[0] * layout.batch_size < LARGEST
    window = torch.empty(rows, dtype=torch.int32 if small else torch.int64, device=device)
    windows_jit.window_kernel[(programs(layout),)](*cell_arguments(layout, grid, size, shift), window, BLOCK=BLOCK)
    window, order = window.sort(stable=True)
    inverse, order32 = torch.empty_like(order), torch.empty_like(order, dtype=torch.int32)
    begins = torch.empty(rows + 1, dtype=torch.int8, device=device)
    windows_jit.begins_kernel[(rows // BLOCK + 1,)](window, order, inverse, order32, begins, rows, BLOCK=BLOCK)
    found = Windows(order, inverse, layout_of(begins))
    Sequences(found.layout, found.layout, order).know(order32)
    return found
