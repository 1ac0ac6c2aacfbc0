"""Triton kernels of the gated residual, out = x + gate[sample of the row] * y.

Computed in float32. A pointer that is None is compiled away.
"""

import triton
import triton.language as tl

SIZES = ["rows", "length", "per_program"]  # change from batch to batch: never compiled in


@triton.jit
def _loaded(pointer, row, stride, column, mask):
    return tl.load(pointer + row * stride + column[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    x,  # [rows, C]
    gate,  # [B, C]
    y,  # [rows, C]
    tx,  # tangents, or None
    tgate,
    ty,
    index,  # [rows] the sample of each row, for a packed batch; None: every sample has ``length`` rows
    out,  # [rows, C] contiguous, or None
    tout,  # its tangent, or None
    rows,
    length,
    x_stride,
    gate_stride,
    y_stride,
    tx_stride,
    tgate_stride,
    ty_stride,
    WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Values and tangents of BLOCK_R rows by BLOCK_C columns per program instance."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    live = row < rows
    mask = live[:, None] & (column < WIDTH)[None, :]
    if index is None:  # noqa: SIM108 (a branch that is not compiled)
        sample = row // length
    else:
        sample = tl.load(index + row, mask=live, other=0)
    sample = sample.to(tl.int64)[:, None]
    row = row.to(tl.int64)[:, None]
    place = row * WIDTH + column[None, :]
    factor = _loaded(gate, sample, gate_stride, column, mask)
    if out is not None or tgate is not None:
        branch = _loaded(y, row, y_stride, column, mask)
    if out is not None:
        value = _loaded(x, row, x_stride, column, mask) + factor * branch
        tl.store(out + place, value.to(out.dtype.element_ty), mask=mask)
    if tout is not None:
        pushed = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
        if tx is not None:
            pushed += _loaded(tx, row, tx_stride, column, mask)
        if tgate is not None:
            pushed += _loaded(tgate, sample, tgate_stride, column, mask) * branch
        if ty is not None:
            pushed += factor * _loaded(ty, row, ty_stride, column, mask)
        tl.store(tout + place, pushed.to(tout.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def backward_kernel(
    gate,  # [B, C]
    y,  # [rows, C]
    bounds,  # [B + 1] row boundaries of the samples of a packed batch; None: every sample has ``length`` rows
    grad,  # [rows, C], gradient of the output
    dy,  # [rows, C] contiguous, or None
    partial,  # [programs, B, C] float32: each program's part of the gate's gradient; or None
    length,
    per_program,
    gate_stride,
    y_stride,
    grad_stride,
    WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Gradients of y, and partial sums of that of gate, for per_program rows of one sample and BLOCK_C columns.

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
    column = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = column < WIDTH
    factor = tl.load(gate + sample * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
    to_gate = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for at in range(first, last, BLOCK_R):
        row = (at + tl.arange(0, BLOCK_R))[:, None]
        mask = (row < last) & inside[None, :]
        g = _loaded(grad, row, grad_stride, column, mask)
        if partial is not None:
            to_gate += g * _loaded(y, row, y_stride, column, mask)
        if dy is not None:
            tl.store(dy + row * WIDTH + column[None, :], (g * factor[None, :]).to(dy.dtype.element_ty), mask=mask)
    if partial is not None:
        place = partial + (tl.program_id(0) * tl.num_programs(1) + sample).to(tl.int64) * WIDTH + column
        tl.store(place, tl.sum(to_gate, 0), mask=inside)
