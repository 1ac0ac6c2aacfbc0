"""Triton kernels of the modulated norm, y = layer_norm(x) * (1 + scale) + shift, scale and shift of the row's sample.

Rows are tokens. A program instance holds whole rows in registers; the backward kernel recomputes their statistics.
Computed in float32. A pointer that is None is compiled away.
"""

import triton
import triton.language as tl

SIZES = ["rows", "length", "per_program"]  # change from batch to batch: never compiled in


@triton.jit
def _normalised(x, row, column, mask, stride, eps, WIDTH: tl.constexpr):
    """The rows with mean 0 and variance 1 ([R, C], 0 outside the mask), and 1 / sqrt(variance + eps) [R, 1]."""
    values = tl.load(x + row[:, None] * stride + column[None, :], mask=mask, other=0.0).to(tl.float32)
    centred = tl.where(mask, values - (tl.sum(values, 1) / WIDTH)[:, None], 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, 1) / WIDTH + eps)[:, None]
    return centred * inverse, inverse


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    x,  # [rows, C]
    tx,  # its tangent, or None
    shift,  # [B, C]
    scale,
    tshift,  # tangents, or None
    tscale,
    index,  # [rows] the sample of each row, for a packed batch; None: every sample has ``length`` rows
    y,  # [rows, C] contiguous, or None
    ty,  # its tangent, or None
    rows,
    length,
    x_stride,
    tx_stride,
    shift_stride,
    scale_stride,
    tshift_stride,
    tscale_stride,
    eps,
    WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Values and tangents of BLOCK_R rows per program instance."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.arange(0, BLOCK_C)
    live = row < rows
    mask = live[:, None] & (column < WIDTH)[None, :]
    if index is None:  # noqa: SIM108 (a branch that is not compiled)
        sample = row // length
    else:
        sample = tl.load(index + row, mask=live, other=0)
    row = row.to(tl.int64)
    sample = sample.to(tl.int64)[:, None]
    place = row[:, None] * WIDTH + column[None, :]
    normed, inverse = _normalised(x, row, column, mask, x_stride, eps, WIDTH)
    gain = 1.0 + tl.load(scale + sample * scale_stride + column[None, :], mask=mask, other=0.0).to(tl.float32)
    if y is not None:
        offset = tl.load(shift + sample * shift_stride + column[None, :], mask=mask, other=0.0).to(tl.float32)
        tl.store(y + place, (normed * gain + offset).to(y.dtype.element_ty), mask=mask)
    if ty is not None:
        pushed = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
        if tx is not None:
            t = tl.load(tx + row[:, None] * tx_stride + column[None, :], mask=mask, other=0.0).to(tl.float32)
            t = t - (tl.sum(t, 1) / WIDTH)[:, None] - normed * (tl.sum(t * normed, 1) / WIDTH)[:, None]
            pushed += t * inverse * gain
        if tscale is not None:
            t = tl.load(tscale + sample * tscale_stride + column[None, :], mask=mask, other=0.0).to(tl.float32)
            pushed += normed * t
        if tshift is not None:
            t = tl.load(tshift + sample * tshift_stride + column[None, :], mask=mask, other=0.0)
            pushed += t.to(tl.float32)
        tl.store(ty + place, pushed.to(ty.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def backward_kernel(
    x,  # [rows, C]
    scale,  # [B, C]
    bounds,  # [B + 1] row boundaries of the samples of a packed batch; None: every sample has ``length`` rows
    grad,  # [rows, C], gradient of the output
    dx,  # [rows, C] contiguous, or None
    partial,  # [programs, B, 2, C] float32: each program's part of the gradients of shift and scale; or None
    length,
    per_program,
    x_stride,
    scale_stride,
    grad_stride,
    eps,
    WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Gradients of x, and partial sums of those of shift and scale, for per_program rows of one sample.

    Program instances never span samples, so that sums over a sample are added in a fixed order.
    """
    sample = tl.program_id(1)
    if bounds is None:
        start = sample.to(tl.int64) * length
        end = start + length
    else:
        start = tl.load(bounds + sample)
        end = tl.load(bounds + sample + 1)
    first = start + tl.program_id(0).to(tl.int64) * per_program
    last = tl.minimum(first + per_program, end)
    column = tl.arange(0, BLOCK_C)
    inside = column < WIDTH
    gain = 1.0 + tl.load(scale + sample * scale_stride + column, mask=inside, other=0.0).to(tl.float32)
    to_shift = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    to_scale = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for at in range(first, last, BLOCK_R):
        row = at + tl.arange(0, BLOCK_R)
        mask = (row < last)[:, None] & inside[None, :]
        normed, inverse = _normalised(x, row, column, mask, x_stride, eps, WIDTH)
        g = tl.load(grad + row[:, None] * grad_stride + column[None, :], mask=mask, other=0.0).to(tl.float32)
        if partial is not None:
            to_shift += g
            to_scale += g * normed
        if dx is not None:
            g = g * gain[None, :]
            g = g - (tl.sum(g, 1) / WIDTH)[:, None] - normed * (tl.sum(g * normed, 1) / WIDTH)[:, None]
            tl.store(dx + row[:, None] * WIDTH + column[None, :], (g * inverse).to(dx.dtype.element_ty), mask=mask)
    if partial is not None:
        place = partial + (tl.program_id(0) * tl.num_programs(1) + sample).to(tl.int64) * 2 * WIDTH + column
        tl.store(place, tl.sum(to_shift, 0), mask=inside)
        tl.store(place + WIDTH, tl.sum(to_scale, 0), mask=inside)
