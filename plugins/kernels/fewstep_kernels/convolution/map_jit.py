"""Kernels: what a convolution knows of its voxels. Neighbours from a table of all cells, their order, tiles, pairs."""

import triton
import triton.language as tl

from fewstep_kernels.cells_jit import SIZES, cell_of


@triton.jit(do_not_specialize=SIZES)
def put_kernel(
    coords, index, rows, row_stride, axis_stride, x_low, y_low, z_low, size, sample_step, x_step, y_step,
    lookup, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write each row's number into its cell of lookup, int32."""
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
    """table [EDGE^3, rows]: what lies at each offset from a row's cell; twice gets 1 if a cell has two rows."""
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
    """code [rows]: the place in Gray order of the bits that say which offsets exist, 2 REACH around the middle one."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = row < rows
    bits = tl.zeros([BLOCK], tl.int64 if WIDE else tl.int32)
    for i in range(2 * REACH):
        offset = (middle - REACH + i + i // REACH).to(tl.int64)  # the voxel itself is always there
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
    """The arrays of ``plan.Tiles``, one tile a program, from rows in their order."""
    tile = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK_M)
    live = tile * BLOCK_M + lane < rows
    row = tl.load(sorted_rows + tile * BLOCK_M + lane, mask=live, other=0)
    tl.store(order + tile * BLOCK_M + lane, row.to(tl.int32))
    count = 0
    for offset in range(volume):
        found = tl.load(table + tl.cast(rows, tl.int64) * offset + row, mask=live, other=-1)
        # An offset that no voxel of the tile has is overwritten by the next one.
        slot = tile * volume + count
        tl.store(near + slot * BLOCK_M + lane, found)
        tl.store(offsets + slot, offset)
        count += (tl.max(found, 0) >= 0).to(tl.int32)
    tl.store(counts + tile, count)


@triton.jit(do_not_specialize=["rows"])
def pairs_kernel(table, sources, targets, counts, rows, BLOCK: tl.constexpr):
    """The arrays of ``plan.Pairs``, one offset a program, in the order of rows."""
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
