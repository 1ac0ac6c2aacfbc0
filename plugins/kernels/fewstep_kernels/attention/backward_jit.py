"""Kernels: gradients of attention, from the saved log-sum-exp (lse) of the scores.

With S = s Q K', P = exp(S - lse), D = rowsum(dO O), dS = P (dO V' - D): dV = P' dO, dK = s dS' Q, dQ = s dS K
(FlashAttention-2, arXiv 2307.08691, algorithm 2). P is computed in base 2: exp2(scale2 Q K' - lse) with
scale2 = s log2(e), and lse in base 2, as ``forward_jit`` saves it. Sums are in float32.
"""

import triton
import triton.language as tl

from fewstep_kernels.attention.forward_jit import addresses, load_rows, product, rows_at, store_rows


@triton.jit(do_not_specialize=["count", "lse_stride"])
def delta_kernel(
    out, grad, delta, count, out_stride, out_head, grad_stride, grad_head, lse_stride,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """delta [H, T] = rowsum(out * grad), both [T, H, HEAD]. A program instance handles BLOCK_M rows of one head."""
    head = tl.program_id(1).to(tl.int64)
    start = tl.program_id(0) * BLOCK_M
    rows = start + tl.arange(0, BLOCK_M)
    valid = rows < count
    o = load_rows(out + head * out_head, start, rows, out_stride, valid, HEAD, WIDTH, BLOCK_M, False, True).to(
        tl.float32
    )
    g = load_rows(grad + head * grad_head, start, rows, grad_stride, valid, HEAD, WIDTH, BLOCK_M, False, True).to(
        tl.float32
    )
    tl.store(delta + head * lse_stride + rows, tl.sum(o * g, 1), mask=valid)


@triton.jit
def fold_keys(dk, dv, dq, key, value, query, grad, lse, delta, at, rows, valid, present, dq_stride, scale, scale2,
              HEAD: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, ATOMIC: tl.constexpr,
              INDEXED: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Adds one block of queries to the gradients of a block of keys. Scores are transposed: [keys, queries]."""
    scores = product(key, tl.trans(query), UPCAST, PRECISION)
    weights = tl.math.exp2(scores * scale2 - lse[None, :])
    # Queries and keys past the sample's end load as zeros, whose score 0 would count: their weight is masked.
    weights = tl.where(present[:, None] & valid[None, :], weights, 0.0)
    dv += product(weights, grad, UPCAST, PRECISION)
    moved = weights * (product(value, tl.trans(grad), UPCAST, PRECISION) - delta[None, :])
    dk += product(moved, query, UPCAST, PRECISION)
    if ATOMIC:
        part = product(tl.trans(moved.to(key.dtype)), key, UPCAST, PRECISION) * scale
        d = tl.arange(0, WIDTH)
        to = addresses(dq, at, rows, dq_stride, BLOCK_M, WIDTH, INDEXED)
        tl.atomic_add(to, part, mask=valid[:, None] & (d[None, :] < HEAD), sem="relaxed")
    return dk, dv


@triton.jit(do_not_specialize=["lse_stride"])
def keys_kernel(
    q, k, v, grad, lse, delta, dq, dk, dv, tiles, q_bounds, k_bounds, order, scale, scale2,
    q_stride, q_head, k_stride, k_head, v_stride, v_head, grad_stride, grad_head, dk_stride, dk_head, lse_stride,
    stretches, stretch_stride,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    ATOMIC: tl.constexpr, INDEXED: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv [S, H, HEAD]; with ATOMIC also dq (float32, zero-initialised, strides of dk), added up by atomics.

    A program instance handles BLOCK_N keys of one head and loops over the queries of their sample, or over one of
    ``stretches`` parts of them; then dk and dv are [stretches, S, H, HEAD], partial sums to be added afterwards.
    """
    tile, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    sample, first = tl.load(tiles + 2 * tile), tl.load(tiles + 2 * tile + 1)
    q_start, q_end = tl.load(q_bounds + sample), tl.load(q_bounds + sample + 1)
    k_start, k_end = tl.load(k_bounds + sample) + first, tl.load(k_bounds + sample + 1)
    present = tl.arange(0, BLOCK_N) < k_end - k_start
    others = rows_at(order, k_start, k_end - k_start, BLOCK_N, INDEXED)
    key = load_rows(k + head * k_head, k_start, others, k_stride, present, HEAD, WIDTH, BLOCK_N, INDEXED, True)
    value = load_rows(v + head * v_head, k_start, others, v_stride, present, HEAD, WIDTH, BLOCK_N, INDEXED, True)
    q += head * q_head
    grad += head * grad_head
    lse += head * lse_stride
    delta += head * lse_stride
    dq += head * dk_head

    stretch = tl.cdiv(tl.cdiv(q_end - q_start, stretches), BLOCK_M) * BLOCK_M
    q_start += tl.program_id(2) * stretch
    q_end = tl.minimum(q_end, q_start + stretch)
    dk += tl.program_id(2).to(tl.int64) * stretch_stride
    dv += tl.program_id(2).to(tl.int64) * stretch_stride

    dk_sum = tl.zeros([BLOCK_N, WIDTH], tl.float32)
    dv_sum = tl.zeros([BLOCK_N, WIDTH], tl.float32)
    for at in range(q_start, q_end, BLOCK_M):
        valid = tl.arange(0, BLOCK_M) < q_end - at
        rows = rows_at(order, at, q_end - at, BLOCK_M, INDEXED)
        query = load_rows(q, at, rows, q_stride, valid, HEAD, WIDTH, BLOCK_M, INDEXED, True)
        upstream = load_rows(grad, at, rows, grad_stride, valid, HEAD, WIDTH, BLOCK_M, INDEXED, True)
        log = tl.load(lse + rows, mask=valid, other=0.0)
        inner = tl.load(delta + rows, mask=valid, other=0.0)
        dk_sum, dv_sum = fold_keys(
            dk_sum, dv_sum, dq, key, value, query, upstream, log, inner, at, rows, valid, present, dk_stride, scale,
            scale2, HEAD, WIDTH, BLOCK_M, ATOMIC, INDEXED, UPCAST, PRECISION,
        )  # fmt: skip
    store_rows(dk + head * dk_head, k_start, others, dk_stride, present, dk_sum * scale, HEAD, WIDTH, BLOCK_N, INDEXED)
    store_rows(dv + head * dk_head, k_start, others, dk_stride, present, dv_sum, HEAD, WIDTH, BLOCK_N, INDEXED)


@triton.jit(do_not_specialize=["lse_stride"])
def queries_kernel(
    q, k, v, grad, lse, delta, dq, tiles, q_bounds, k_bounds, order, scale, scale2,
    q_stride, q_head, k_stride, k_head, v_stride, v_head, grad_stride, grad_head, dq_stride, dq_head, lse_stride,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    INDEXED: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq [T, H, HEAD]; a program instance sums BLOCK_M queries of one head over their keys, in a fixed order."""
    tile, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    sample, first = tl.load(tiles + 2 * tile), tl.load(tiles + 2 * tile + 1)
    q_start, q_end = tl.load(q_bounds + sample) + first, tl.load(q_bounds + sample + 1)
    k_start, k_end = tl.load(k_bounds + sample), tl.load(k_bounds + sample + 1)
    valid = tl.arange(0, BLOCK_M) < q_end - q_start
    rows = rows_at(order, q_start, q_end - q_start, BLOCK_M, INDEXED)
    query = load_rows(q + head * q_head, q_start, rows, q_stride, valid, HEAD, WIDTH, BLOCK_M, INDEXED, True)
    upstream = load_rows(
        grad + head * grad_head, q_start, rows, grad_stride, valid, HEAD, WIDTH, BLOCK_M, INDEXED, True
    )
    log = tl.load(lse + head * lse_stride + rows, mask=valid, other=0.0)
    inner = tl.load(delta + head * lse_stride + rows, mask=valid, other=0.0)
    k += head * k_head
    v += head * v_head

    total = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    for at in range(k_start, k_end, BLOCK_N):
        present = tl.arange(0, BLOCK_N) < k_end - at
        others = rows_at(order, at, k_end - at, BLOCK_N, INDEXED)
        # Keys past the end load as zeros. Their weight exp2(0 - log) could overflow and make 0 * inf, hence -inf.
        key = load_rows(k, at, others, k_stride, present, HEAD, WIDTH, BLOCK_N, INDEXED, True)
        value = load_rows(v, at, others, v_stride, present, HEAD, WIDTH, BLOCK_N, INDEXED, True)
        scores = tl.where(present[None, :], product(query, tl.trans(key), UPCAST, PRECISION), float("-inf"))
        weights = tl.math.exp2(scores * scale2 - log[:, None])
        moved = weights * (product(upstream, tl.trans(value), UPCAST, PRECISION) - inner[:, None])
        total += product(moved, key, UPCAST, PRECISION)
    store_rows(dq + head * dq_head, q_start, rows, dq_stride, valid, total * scale, HEAD, WIDTH, BLOCK_M, INDEXED)
