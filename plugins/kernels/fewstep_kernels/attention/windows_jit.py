"""Kernels that sort rows into windows: each row's window number before the sort, the window boundaries after it.

A program instance handles BLOCK rows.
"""

import triton
import triton.language as tl

from fewstep_kernels.cells_jit import SIZES, cell_of


@triton.jit(do_not_specialize=SIZES)
def window_kernel(
    coords, index, rows, row_stride, axis_stride, x_low, y_low, z_low, size, sample_step, x_step, y_step,
    window, BLOCK: tl.constexpr,
):  # fmt: skip
    """window [rows]: the number of each row's window."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = row < rows
    cell = cell_of(
        coords, index, row, live, row_stride, axis_stride, x_low, y_low, z_low, size, sample_step, x_step, y_step
    )
    tl.store(window + row, cell.to(window.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["rows"])
def begins_kernel(window, order, inverse, order32, begins, rows, BLOCK: tl.constexpr):
    """From the sorted window numbers: begins [rows + 1], 1 at the first row of each window and at the end; the order as
    int32; and its inverse."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = place < rows
    here = tl.load(window + place, mask=live, other=0)
    before = tl.load(window + place - 1, mask=live & (place > 0), other=0)
    first = (place == 0) | (place == rows) | (here != before)
    tl.store(begins + place, first.to(tl.int8), mask=place <= rows)
    row = tl.load(order + place, mask=live, other=0)
    tl.store(order32 + place, row.to(tl.int32), mask=live)
    tl.store(inverse + row, place.to(tl.int64), mask=live)
