"""Triton code shared by convolution and windows: the number of a voxel's cell."""

import triton
import triton.language as tl

SIZES = ["rows", "x_low", "y_low", "z_low", "sample_step", "x_step", "y_step"]  # never compiled in: they vary


@triton.jit
def cell_of(
    coords, index, row, live, row_stride, axis_stride, x_low, y_low, z_low, size, sample_step, x_step, y_step
):  # fmt: skip
    """int64 number of each row's cell of ``size``^3 voxels, by sample, x, y, z, each counted from its lowest value."""
    at = coords + row * row_stride
    x = (tl.load(at, mask=live, other=0).to(tl.int64) - x_low) // size
    y = (tl.load(at + axis_stride, mask=live, other=0).to(tl.int64) - y_low) // size
    z = (tl.load(at + 2 * axis_stride, mask=live, other=0).to(tl.int64) - z_low) // size
    sample = tl.load(index + row, mask=live, other=0)
    return sample * sample_step + x * x_step + y * y_step + z
