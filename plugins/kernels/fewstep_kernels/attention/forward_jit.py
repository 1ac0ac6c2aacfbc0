"""Kernels: attention of one tile of queries to all keys of its sample, and the same with a tangent.

Online softmax in base 2 with a running maximum m (FlashAttention-2, arXiv 2307.08691). With S = s Q K', dS its tangent,
P = exp(S - m), H = P dS, l = rowsum P, r = rowsum H, the value is O = P V / l and its tangent
dO = (P dV + H V) / l - (r / l) O: both come from a single pass over the keys. scale2 = s log2(e), so that
exp(S - m) = exp2(scale2 Q K' - m log2(e)). Sums are in float32.

Tensors are packed, [T, H, HEAD], given by the strides of rows and heads; channels are contiguous. ``tiles`` [N, 2] has
each tile's sample and first row within it, ``q_bounds`` and ``k_bounds`` [B + 1] the row boundaries of the samples.
With INDEXED, ``order`` maps positions to rows.
"""

import triton
import triton.language as tl


@triton.jit
def rows_at(order, start, count, BLOCK: tl.constexpr, INDEXED: tl.constexpr):
    """int32 [BLOCK] rows at positions start, start + 1, ...; with INDEXED row 0 for positions from start + count on."""
    place = start + tl.arange(0, BLOCK)
    if INDEXED:
        place = tl.load(order + place, mask=tl.arange(0, BLOCK) < count, other=0)
    return place


@triton.jit
def addresses(base, start, rows, stride, BLOCK: tl.constexpr, WIDTH: tl.constexpr, INDEXED: tl.constexpr):
    """[BLOCK, WIDTH] addresses of the rows' channels, with 64-bit arithmetic only where needed."""
    d = tl.arange(0, WIDTH)
    if INDEXED:
        return base + rows[:, None].to(tl.int64) * stride + d[None, :]
    # A loop over blocks advances only a scalar; the offsets within a block are loop-invariant. tl.cast, since Triton
    # makes a stride of 1 a constant, which has no ``to``.
    return base + start * tl.cast(stride, tl.int64) + (tl.arange(0, BLOCK)[:, None] * stride + d[None, :])


@triton.jit
def load_rows(base, start, rows, stride, valid, HEAD: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
              INDEXED: tl.constexpr, MASKED: tl.constexpr, AGAIN: tl.constexpr = False):  # fmt: skip
    """[BLOCK, WIDTH] with the first HEAD channels of valid rows, zeros elsewhere; without MASKED all rows are valid.

    AGAIN reloads in every iteration of a loop: the compiler hoists a loop-invariant load, but not a volatile one.
    """
    d = tl.arange(0, WIDTH)
    at = addresses(base, start, rows, stride, BLOCK, WIDTH, INDEXED)
    if MASKED:
        return tl.load(at, mask=valid[:, None] & (d[None, :] < HEAD), other=0.0, volatile=AGAIN)
    if HEAD != WIDTH:
        return tl.load(at, mask=d[None, :] < HEAD, other=0.0)
    return tl.load(at)


@triton.jit
def store_rows(base, start, rows, stride, valid, x, HEAD: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
               INDEXED: tl.constexpr):  # fmt: skip
    """The inverse of ``load_rows``: stores valid rows, rounded to the tensor's type."""
    d = tl.arange(0, WIDTH)
    at = addresses(base, start, rows, stride, BLOCK, WIDTH, INDEXED)
    tl.store(at, x.to(base.dtype.element_ty), mask=valid[:, None] & (d[None, :] < HEAD))


@triton.jit
def product(a, b, UPCAST: tl.constexpr, PRECISION: tl.constexpr):
    """a @ b, accumulated in float32; ``a`` is rounded to the type of ``b`` first."""
    if UPCAST:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision=PRECISION)
    return tl.dot(a.to(b.dtype), b, input_precision=PRECISION)


@triton.jit
def fold(acc, total, top, q, k, v, left, scale2, BLOCK_N: tl.constexpr, MASKED: tl.constexpr, UPCAST: tl.constexpr,
         PRECISION: tl.constexpr):  # fmt: skip
    """Folds one block of keys into the running sums of weighted values and of weights, and the running maximum."""
    scores = product(q, tl.trans(k), UPCAST, PRECISION)
    if MASKED:
        scores = tl.where(tl.arange(0, BLOCK_N)[None, :] < left, scores, float("-inf"))
    higher = tl.maximum(top, tl.max(scores, 1) * scale2)
    weights = tl.math.exp2(scores * scale2 - higher[:, None])
    shrink = tl.math.exp2(top - higher)
    total = total * shrink + tl.sum(weights, 1)
    acc = acc * shrink[:, None] + product(weights, v, UPCAST, PRECISION)
    return acc, total, higher


@triton.jit(do_not_specialize=["lse_stride"])
def forward_kernel(
    q, k, v, out, lse, tiles, q_bounds, k_bounds, order, scale2,
    q_stride, q_head, k_stride, k_head, v_stride, v_head, out_stride, out_head, lse_stride,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    INDEXED: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """out [T, H, HEAD] and float32 lse [H, T] = log2(sum over keys of exp(S)), both 0 for samples without keys.

    A program instance handles BLOCK_M queries of one head. Part 0 of the keys is whole blocks, loaded without masks;
    part 1 is the remainder. With FIRST = 1 all keys are in part 1, which halves the code: without tensor cores, the
    unmasked loop costs registers and gains nothing.
    """
    tile, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    sample, first = tl.load(tiles + 2 * tile), tl.load(tiles + 2 * tile + 1)
    q_start, q_end = tl.load(q_bounds + sample) + first, tl.load(q_bounds + sample + 1)
    k_start, k_end = tl.load(k_bounds + sample), tl.load(k_bounds + sample + 1)
    valid = tl.arange(0, BLOCK_M) < q_end - q_start
    rows = rows_at(order, q_start, q_end - q_start, BLOCK_M, INDEXED)
    query = load_rows(q + head * q_head, q_start, rows, q_stride, valid, HEAD, WIDTH, BLOCK_M, INDEXED, True)
    k += head * k_head
    v += head * v_head

    acc = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    whole = k_end - (k_end - k_start) % BLOCK_N
    for part in tl.static_range(FIRST, 2):
        # The remainder is at most one block: nothing to pipeline.
        begin, end = k_start if part == FIRST else whole, k_end if part == 1 else whole
        for at in tl.range(begin, end, BLOCK_N, num_stages=1 if part > FIRST else None):
            left = k_end - at
            present = tl.arange(0, BLOCK_N) < left
            others = rows_at(order, at, left, BLOCK_N, INDEXED)
            key = load_rows(k, at, others, k_stride, present, HEAD, WIDTH, BLOCK_N, INDEXED, part == 1)
            value = load_rows(v, at, others, v_stride, present, HEAD, WIDTH, BLOCK_N, INDEXED, part == 1)
            acc, total, top = fold(
                acc, total, top, query, key, value, left, scale2, BLOCK_N, part == 1, UPCAST, PRECISION
            )

    # A sample without keys: zeros.
    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    store_rows(
        out + head * out_head, q_start, rows, out_stride, valid, acc / total[:, None], HEAD, WIDTH, BLOCK_M, INDEXED
    )
    tl.store(lse + head * lse_stride + rows, tl.where(empty, 0.0, top + tl.math.log2(total)), mask=valid)


@triton.jit
def fold_tangent(acc, tacc, total, ttotal, top, q, tq, k, tk, v, tv, left, scale2, scale, BLOCK_N: tl.constexpr,
                 MASKED: tl.constexpr, HAS_Q: tl.constexpr, HAS_K: tl.constexpr, HAS_V: tl.constexpr,
                 UPCAST: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """``fold`` for value and tangent; at least one of HAS_Q, HAS_K, HAS_V is set."""
    kt = tl.trans(k)
    scores = product(q, kt, UPCAST, PRECISION)
    if MASKED:
        scores = tl.where(tl.arange(0, BLOCK_N)[None, :] < left, scores, float("-inf"))
    higher = tl.maximum(top, tl.max(scores, 1) * scale2)
    weights = tl.math.exp2(scores * scale2 - higher[:, None])
    shrink = tl.math.exp2(top - higher)
    total = total * shrink + tl.sum(weights, 1)
    acc = acc * shrink[:, None] + product(weights, v, UPCAST, PRECISION)
    tacc = tacc * shrink[:, None]
    if HAS_Q or HAS_K:
        if HAS_Q and HAS_K:
            tscores = product(tq, kt, UPCAST, PRECISION) + product(q, tl.trans(tk), UPCAST, PRECISION)
        elif HAS_Q:
            tscores = product(tq, kt, UPCAST, PRECISION)
        else:
            tscores = product(q, tl.trans(tk), UPCAST, PRECISION)
        moved = weights * (tscores * scale)
        ttotal = ttotal * shrink + tl.sum(moved, 1)
        tacc += product(moved, v, UPCAST, PRECISION)
    if HAS_V:
        tacc += product(weights, tv, UPCAST, PRECISION)
    return acc, tacc, total, ttotal, higher


@triton.jit(do_not_specialize=["lse_stride"])
def tangent_kernel(
    q, k, v, tq, tk, tv, out, tout, lse, tiles, q_bounds, k_bounds, order, scale2, scale,
    q_stride, q_head, k_stride, k_head, v_stride, v_head,
    tq_stride, tq_head, tk_stride, tk_head, tv_stride, tv_head, out_stride, out_head, lse_stride,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_Q: tl.constexpr, HAS_K: tl.constexpr, HAS_V: tl.constexpr,
    INDEXED: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr, FIRST: tl.constexpr, AGAIN: tl.constexpr,
):  # fmt: skip
    """``forward_kernel`` and, in the same pass, the tangent tout [T, H, HEAD], with the strides of out. The pointer of
    an absent tangent is not read.

    With AGAIN the queries are reloaded for every block of keys: those of wide heads would not fit into the registers.
    """
    tile, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    sample, first = tl.load(tiles + 2 * tile), tl.load(tiles + 2 * tile + 1)
    q_start, q_end = tl.load(q_bounds + sample) + first, tl.load(q_bounds + sample + 1)
    k_start, k_end = tl.load(k_bounds + sample), tl.load(k_bounds + sample + 1)
    valid = tl.arange(0, BLOCK_M) < q_end - q_start
    rows = rows_at(order, q_start, q_end - q_start, BLOCK_M, INDEXED)
    query = load_rows(q + head * q_head, q_start, rows, q_stride, valid, HEAD, WIDTH, BLOCK_M, INDEXED, True)
    tquery = query
    if HAS_Q:
        tquery = load_rows(tq + head * tq_head, q_start, rows, tq_stride, valid, HEAD, WIDTH, BLOCK_M, INDEXED, True)
    k += head * k_head
    v += head * v_head
    tk += head * tk_head
    tv += head * tv_head

    acc = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    tacc = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    ttotal = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    whole = k_end - (k_end - k_start) % BLOCK_N
    for part in tl.static_range(FIRST, 2):
        # The remainder is at most one block: nothing to pipeline.
        begin, end = k_start if part == FIRST else whole, k_end if part == 1 else whole
        for at in tl.range(begin, end, BLOCK_N, num_stages=1 if part > FIRST else None):
            left = k_end - at
            present = tl.arange(0, BLOCK_N) < left
            others = rows_at(order, at, left, BLOCK_N, INDEXED)
            key = load_rows(k, at, others, k_stride, present, HEAD, WIDTH, BLOCK_N, INDEXED, part == 1)
            value = load_rows(v, at, others, v_stride, present, HEAD, WIDTH, BLOCK_N, INDEXED, part == 1)
            if AGAIN:
                query = load_rows(
                    q + head * q_head, q_start, rows, q_stride, valid, HEAD, WIDTH, BLOCK_M, INDEXED, True, True
                )
                tquery = query
                if HAS_Q:
                    tquery = load_rows(
                        tq + head * tq_head, q_start, rows, tq_stride, valid, HEAD, WIDTH, BLOCK_M, INDEXED, True, True
                    )
            tkey, tvalue = key, value
            if HAS_K:
                tkey = load_rows(tk, at, others, tk_stride, present, HEAD, WIDTH, BLOCK_N, INDEXED, part == 1)
            if HAS_V:
                tvalue = load_rows(tv, at, others, tv_stride, present, HEAD, WIDTH, BLOCK_N, INDEXED, part == 1)
            acc, tacc, total, ttotal, top = fold_tangent(
                acc, tacc, total, ttotal, top, query, tquery, key, tkey, value, tvalue, left, scale2, scale, BLOCK_N,
                part == 1, HAS_Q, HAS_K, HAS_V, UPCAST, PRECISION,
            )  # fmt: skip

    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    value = acc / total[:, None]
    tangent = tacc / total[:, None] - (ttotal / total)[:, None] * value
    store_rows(out + head * out_head, q_start, rows, out_stride, valid, value, HEAD, WIDTH, BLOCK_M, INDEXED)
    store_rows(tout + head * out_head, q_start, rows, out_stride, valid, tangent, HEAD, WIDTH, BLOCK_M, INDEXED)
    tl.store(lse + head * lse_stride + rows, tl.where(empty, 0.0, top + tl.math.log2(total)), mask=valid)
