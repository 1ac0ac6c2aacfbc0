"""Kernels: submanifold convolution as an implicit matrix product, and the gradient of its weights.

Voxels are sorted by which neighbours they have, so that those of a tile share most of their offsets and the others are
skipped (the idea of FlexGEMM and TorchSparse++); rows are gathered straight into the product.
"""

import triton
import triton.language as tl


@triton.jit
def product(a, b, acc, UPCAST: tl.constexpr, PRECISION: tl.constexpr):
    """acc + a b in float32."""
    if UPCAST:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision=PRECISION)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit(do_not_specialize=["rows"])
def conv_kernel(
    x, w, out, order, near, offsets, counts, rows, volume, ci, co,
    x_stride, w_offset, w_in, w_out, out_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out [T, Co] of x [T, Ci] and w [K, Ci, Co].

    Tile i has the rows order[i BLOCK_M ...] and counts[i] offsets, offsets[i, :]; near[i, j, :] are its rows'
    neighbours at the j-th of them, -1 where there is none.
    """
    tile, columns = tl.program_id(0), tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    place = tl.arange(0, BLOCK_M)
    valid = tile * BLOCK_M + place < rows
    steps = tl.cdiv(ci, BLOCK_K)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    # One loop over offsets and channels, so that loading runs ahead from one offset into the next.
    for i in range(0, tl.load(counts + tile) * steps):
        slot = tile * volume + i // steps
        source = tl.load(near + slot * BLOCK_M + place)
        channels = (i % steps) * BLOCK_K + tl.arange(0, BLOCK_K)
        inside = channels < ci
        a = tl.load(
            x + source[:, None].to(tl.int64) * x_stride + channels[None, :],
            mask=(source >= 0)[:, None] & inside[None, :],
            other=0.0,
        )
        weights = w + tl.load(offsets + slot).to(tl.int64) * w_offset
        b = tl.load(
            weights + channels[:, None] * w_in + columns[None, :] * w_out,
            mask=inside[:, None] & (columns < co)[None, :],
            other=0.0,
        )
        acc = product(a, b, acc, UPCAST, PRECISION)
    target = tl.load(order + tile * BLOCK_M + place, mask=valid, other=0).to(tl.int64)
    at = out + target[:, None] * out_stride + columns[None, :]
    tl.store(at, acc.to(out.dtype.element_ty), mask=valid[:, None] & (columns < co)[None, :])


@triton.jit(do_not_specialize=["rows"])
def outer_kernel(
    x, grad, out, sources, targets, counts, rows, volume, ci, co, splits,
    x_stride, grad_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out [splits, K, Ci, Co]: part of the sum over pairs of x[source]' grad[target], offset by offset.

    sources and targets [K, T] begin with counts[k] pairs. Each split adds its own stretch of them, in order.
    """
    wide = tl.cdiv(co, BLOCK_N)
    rows_of = (tl.program_id(0) // wide) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = (tl.program_id(0) % wide) * BLOCK_N + tl.arange(0, BLOCK_N)
    offset, split = tl.program_id(1).to(tl.int64), tl.program_id(2)
    count = tl.load(counts + offset)
    stretch = tl.cdiv(tl.cdiv(count, splits), BLOCK_K) * BLOCK_K
    end = tl.minimum(count, (split + 1) * stretch)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for at in range(split * stretch, end, BLOCK_K):
        pair = at + tl.arange(0, BLOCK_K)
        present = pair < end
        source = tl.load(sources + offset * rows + pair, mask=present, other=0).to(tl.int64)
        target = tl.load(targets + offset * rows + pair, mask=present, other=0).to(tl.int64)
        a = tl.load(
            x + source[:, None] * x_stride + rows_of[None, :],
            mask=present[:, None] & (rows_of < ci)[None, :],
            other=0.0,
        )
        b = tl.load(
            grad + target[:, None] * grad_stride + columns[None, :],
            mask=present[:, None] & (columns < co)[None, :],
            other=0.0,
        )
        acc = product(tl.trans(a), b, acc, UPCAST, PRECISION)
    to = out + ((split * volume + offset) * ci + rows_of[:, None]) * co + columns[None, :]
    tl.store(to, acc.to(out.dtype.element_ty), mask=(rows_of < ci)[:, None] & (columns < co)[None, :])
