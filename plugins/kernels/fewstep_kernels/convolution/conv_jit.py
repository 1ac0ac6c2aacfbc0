"""Kernels: submanifold convolution as implicit GEMM, and the gradient of its weights.

Voxels are sorted by which neighbours exist, so that the voxels of a tile share most of their offsets and a tile skips
the offsets that none of them has (as FlexGEMM and TorchSparse++ do). Rows are gathered inside the kernel, directly into
the matrix product. Sums are in float32. Channels are contiguous in x, grad and out.
"""

import triton
import triton.language as tl


@triton.jit
def product(a, b, acc, UPCAST: tl.constexpr, PRECISION: tl.constexpr):
    """acc + a @ b, accumulated in float32."""
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
    """out [T, Co] of x [T, Ci] and w [K, Ci, Co]: out[row] = sum over offsets k of x[neighbour of row at k] @ w[k].

    A program instance computes BLOCK_M rows by BLOCK_N output channels. Tile i holds the rows order[i BLOCK_M + ...]
    and has counts[i] offsets, listed in offsets[i, :]; near[i, j, :] are its rows' neighbours at the j-th of these, -1
    for none. See ``plan.Tiles``.
    """
    tile, columns = tl.program_id(0), tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    place = tl.arange(0, BLOCK_M)
    valid = tile * BLOCK_M + place < rows
    steps = tl.cdiv(ci, BLOCK_K)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    # A single loop over offsets and channels, so that prefetching carries over from one offset to the next.
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
    """out [splits, K, Ci, Co]: partial sums over pairs of the outer product x[source]' grad[target], for each offset.

    A program instance computes BLOCK_M input by BLOCK_N output channels of one offset, over one of ``splits`` stretches
    of its pairs, in a fixed order. The first counts[k] entries of sources[k] and targets[k] ([K, T]) are the pairs of
    offset k. See ``plan.Pairs``.
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
