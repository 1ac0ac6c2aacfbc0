"""Kernels that build a convolution's neighbour map: neighbours from a dense table of cells, row order, tiles, pairs."""

import triton
import triton.language as tl

from fewstep_kernels.cells_jit import SIZES, cell_of


@triton.jit(do_not_specialize=SIZES)
def put_kernel(
    coords, index, rows, row_stride, axis_stride, x_low, y_low, z_low, size, sample_step, x_step, y_step,
    lookup, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write each row's index into its cell of lookup (int32, -1 elsewhere). A program instance handles BLOCK rows."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = row < rows
    cell = cell_of(
        coords, index, row, live, row_stride, axis_stride, x_low, y_low, z_low, size, sample_step, x_step, y_step
    )
    tl.store(lookup + cell, row, mask=live)


@triton.jit(do_not_specialize=SIZES)
def find_kernel(
    coords, index, rows, row_stride, axis_stride, x_low, y_low, z_low, size, sample_step, x_step, y_step,
    lookup, table, twice, EDGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """table [EDGE^3, rows]: the row at each offset from a row's cell, -1 for none; twice is set to 1 if two rows share
    a cell. A program instance handles BLOCK rows at one offset."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = row < rows
    cell = cell_of(
        coords, index, row, live, row_stride, axis_stride, x_low, y_low, z_low, size, sample_step, x_step, y_step
    )
    offset = tl.program_id(1)
    x, y, z = offset // (EDGE * EDGE), offset // EDGE % EDGE, offset % EDGE
    cell += (x - EDGE // 2) * x_step + (y - EDGE // 2) * y_step + z - EDGE // 2
    found = tl.load(lookup + cell, mask=live, other=-1)
    tl.store(table + offset.to(tl.int64) * rows + row, found, mask=live)
    if offset == EDGE * EDGE * EDGE // 2:
        tl.store(twice + tl.zeros([BLOCK], tl.int32), 1, mask=live & (found != row))


@triton.jit(do_not_specialize=["rows"])
def code_kernel(table, code, rows, middle, REACH: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """code [rows]: the rank in Gray-code order of a bit mask of existing neighbours, at the 2 REACH offsets around the
    middle one."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = row < rows
    bits = tl.zeros([BLOCK], tl.int64 if WIDE else tl.int32)
    for i in range(2 * REACH):
        offset = (middle - REACH + i + i // REACH).to(tl.int64)  # skips the middle: the voxel itself always exists
        there = tl.load(table + offset * rows + row, mask=live, other=-1) >= 0
        bits |= there.to(bits.dtype) << i
    bits ^= bits >> 1
    bits ^= bits >> 2
    bits ^= bits >> 4
    bits ^= bits >> 8
    bits ^= bits >> 16
    if WIDE:
        bits ^= bits >> 32
    tl.store(code + row, bits, mask=live)


@triton.jit(do_not_specialize=["rows"])
def tiles_kernel(table, sorted_rows, order, near, offsets, counts, rows, volume, BLOCK_M: tl.constexpr):
    """The arrays of ``plan.Tiles`` from the sorted rows; a program instance makes one tile."""
    tile = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK_M)
    live = tile * BLOCK_M + lane < rows
    row = tl.load(sorted_rows + tile * BLOCK_M + lane, mask=live, other=0)
    tl.store(order + tile * BLOCK_M + lane, row.to(tl.int32))
    count = 0
    for offset in range(volume):
        found = tl.load(table + tl.cast(rows, tl.int64) * offset + row, mask=live, other=-1)
        # If no voxel of the tile has this offset, count stays and the next offset overwrites the slot.
        slot = tile * volume + count
        tl.store(near + slot * BLOCK_M + lane, found)
        tl.store(offsets + slot, offset)
        count += (tl.max(found, 0) >= 0).to(tl.int32)
    tl.store(counts + tile, count)


@triton.jit(do_not_specialize=["rows"])
def pairs_kernel(table, sources, targets, counts, rows, BLOCK: tl.constexpr):
    """The arrays of ``plan.Pairs``, in the order of rows; a program instance handles one offset."""
    offset = tl.program_id(0).to(tl.int64)
    table += offset * rows
    sources += offset * rows
    targets += offset * rows
    count = 0
    for at in range(0, rows, BLOCK):
        row = at + tl.arange(0, BLOCK)
        found = tl.load(table + row, mask=row < rows, other=-1)
        there = (found >= 0).to(tl.int32)
        place = count + tl.cumsum(there, 0) - there
        tl.store(sources + place, found, mask=found >= 0)
        tl.store(targets + place, row, mask=found >= 0)
        count += tl.sum(there, 0)
    tl.store(counts + offset, count)
