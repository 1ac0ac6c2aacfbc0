"""Triton kernels of the RMS norm of queries and keys, y = rotary(x / |x| * sqrt(D) * gamma), both in one launch.

A program instance handles one head of a tile of tokens. Inputs are [N, L, H, D], given by the strides of samples,
tokens and heads; channels are contiguous. Computed in float32. A pointer that is None is compiled away.
"""

import triton
import triton.language as tl

TINY = tl.constexpr(1e-12)  # lower bound of the norm that a vector is divided by
SIZES = ["q_tokens", "k_tokens", "q_length", "k_length", "q_programs", "per_program"]


@triton.jit
def _rotated(
    x,
    cos,
    sin,
    position,
    mask,
    BACK: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Rotary embedding of x [T, D]: channels 2i and 2i + 1 rotate by their position's angle, backwards with BACK;
    x itself where cos is None."""
    if cos is not None:
        pair = tl.arange(0, BLOCK_D // 2)
        place = position[:, None] * (WIDTH // 2) + pair[None, :]
        inside = mask[:, None] & (pair < WIDTH // 2)[None, :]
        c = tl.load(cos + place, mask=inside, other=0.0).to(tl.float32)
        s = tl.load(sin + place, mask=inside, other=0.0).to(tl.float32)
        if BACK:
            s = -s
        even, odd = tl.split(tl.reshape(x, (BLOCK_T, BLOCK_D // 2, 2)))
        x = tl.reshape(tl.join(even * c - odd * s, even * s + odd * c), (BLOCK_T, BLOCK_D))
    return x


@triton.jit
def _loaded(x, token, length, head, channel, mask, batch, along, across):
    """[T, D] of one head. Tokens are numbered across samples; batch is None if that is also their order in memory."""
    if batch is None:
        place = token.to(tl.int64) * along + head * across
    else:
        place = (token // length).to(tl.int64) * batch + (token % length).to(tl.int64) * along + head * across
    return tl.load(x + place[:, None] + channel[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _unit(x):
    """x / max(|x|, TINY), and that denominator [T, 1]."""
    size = tl.maximum(tl.sqrt(tl.sum(x * x, 1)), TINY)[:, None]
    return x / size, size


@triton.jit
def _across(t, unit, size):
    """The derivative of x / |x| in direction t. The map is symmetric, so that it also serves the backward pass."""
    along = tl.where(size > TINY, tl.sum(t * unit, 1)[:, None], 0.0)
    return (t - unit * along) / size


@triton.jit
def _forward(
    x,
    tx,
    gamma,
    tgamma,
    cos,
    sin,
    y,
    ty,
    chunk,
    head,
    heads,
    tokens,
    length,
    batch,
    along,
    across,
    t_batch,
    t_along,
    t_across,
    root,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    token = chunk * BLOCK_T + tl.arange(0, BLOCK_T)
    channel = tl.arange(0, BLOCK_D)
    live = token < tokens
    mask = live[:, None] & (channel < WIDTH)[None, :]
    place = ((token.to(tl.int64) * heads + head) * WIDTH)[:, None] + channel[None, :]
    unit, size = _unit(_loaded(x, token, length, head, channel, mask, batch, along, across))
    gain = tl.load(gamma + head * WIDTH + channel, mask=channel < WIDTH, other=0.0).to(tl.float32) * root
    if y is not None:
        out = _rotated(unit * gain[None, :], cos, sin, token % length, live, False, WIDTH, BLOCK_T, BLOCK_D)
        tl.store(y + place, out.to(y.dtype.element_ty), mask=mask)
    if ty is not None:
        out = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
        if tx is not None:
            t = _loaded(tx, token, length, head, channel, mask, t_batch, t_along, t_across)
            out += _across(t, unit, size) * gain[None, :]
        if tgamma is not None:
            t = tl.load(tgamma + head * WIDTH + channel, mask=channel < WIDTH, other=0.0).to(tl.float32) * root
            out += unit * t[None, :]
        out = _rotated(out, cos, sin, token % length, live, False, WIDTH, BLOCK_T, BLOCK_D)
        tl.store(ty + place, out.to(ty.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    q,  # [N, q_length, H, D]
    k,
    tq,  # tangents, or None
    tk,
    q_gamma,  # [H, D] contiguous
    k_gamma,
    tq_gamma,  # tangents, or None
    tk_gamma,
    cos,  # [length, D / 2] contiguous, or None
    sin,
    yq,  # [N, q_length, H, D] contiguous, or None
    yk,
    tyq,  # tangents, or None
    tyk,
    heads,
    q_tokens,
    k_tokens,
    q_length,
    k_length,
    q_programs,  # tiles of q, which come first; the others are tiles of k
    q_batch,  # strides of samples (None: length times the token stride), tokens, heads
    q_along,
    q_across,
    k_batch,
    k_along,
    k_across,
    tq_batch,
    tq_along,
    tq_across,
    tk_batch,
    tk_along,
    tk_across,
    root,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # Adjacent program instances take adjacent heads, which are adjacent in memory.
    chunk = tl.program_id(0) // heads
    head = tl.program_id(0) % heads
    if chunk < q_programs:
        _forward(
            q, tq, q_gamma, tq_gamma, cos, sin, yq, tyq, chunk, head, heads, q_tokens, q_length,
            q_batch, q_along, q_across, tq_batch, tq_along, tq_across, root, WIDTH, BLOCK_T, BLOCK_D,
        )  # fmt: skip
    else:
        _forward(
            k, tk, k_gamma, tk_gamma, cos, sin, yk, tyk, chunk - q_programs, head, heads, k_tokens, k_length,
            k_batch, k_along, k_across, tk_batch, tk_along, tk_across, root, WIDTH, BLOCK_T, BLOCK_D,
        )  # fmt: skip


@triton.jit
def _backward(
    x,
    gamma,
    cos,
    sin,
    grad,
    dx,
    partial,
    chunk,
    head,
    heads,
    tokens,
    length,
    per_program,
    batch,
    along,
    across,
    g_batch,
    g_along,
    g_across,
    root,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    channel = tl.arange(0, BLOCK_D)
    inside = channel < WIDTH
    gain = tl.load(gamma + head * WIDTH + channel, mask=inside, other=0.0).to(tl.float32)
    first = chunk * per_program
    last = tl.minimum(first + per_program, tokens)
    total = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    for at in range(first, last, BLOCK_T):
        token = at + tl.arange(0, BLOCK_T)
        live = token < last
        mask = live[:, None] & inside[None, :]
        unit, size = _unit(_loaded(x, token, length, head, channel, mask, batch, along, across))
        g = _loaded(grad, token, length, head, channel, mask, g_batch, g_along, g_across)
        g = _rotated(g, cos, sin, token % length, live, True, WIDTH, BLOCK_T, BLOCK_D) * root
        if partial is not None:
            total += g * unit
        if dx is not None:
            place = ((token.to(tl.int64) * heads + head) * WIDTH)[:, None] + channel[None, :]
            tl.store(dx + place, _across(g * gain[None, :], unit, size).to(dx.dtype.element_ty), mask=mask)
    if partial is not None:
        tl.store(partial + head * WIDTH + channel, tl.sum(total, 0), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def backward_kernel(
    q,  # [N, q_length, H, D]
    k,
    q_gamma,  # [H, D] contiguous
    k_gamma,
    cos,  # [length, D / 2] contiguous, or None
    sin,
    gq,  # [N, q_length, H, D], gradients of the outputs
    gk,
    dq,  # [N, q_length, H, D] contiguous, or None
    dk,
    partial,  # [programs, H, D] float32: each program's part of the gammas' gradients; or None
    heads,
    q_tokens,
    k_tokens,
    q_length,
    k_length,
    q_programs,
    per_program,
    q_batch,  # strides of samples (None: length times the token stride), tokens, heads
    q_along,
    q_across,
    k_batch,
    k_along,
    k_across,
    gq_batch,
    gq_along,
    gq_across,
    gk_batch,
    gk_along,
    gk_across,
    root,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    chunk = tl.program_id(0) // heads
    head = tl.program_id(0) % heads
    if partial is not None:
        partial += chunk.to(tl.int64) * heads * WIDTH
    if chunk < q_programs:
        _backward(
            q, q_gamma, cos, sin, gq, dq, partial, chunk, head, heads, q_tokens, q_length, per_program,
            q_batch, q_along, q_across, gq_batch, gq_along, gq_across, root, WIDTH, BLOCK_T, BLOCK_D,
        )  # fmt: skip
    else:
        _backward(
            k, k_gamma, cos, sin, gk, dk, partial, chunk - q_programs, head, heads, k_tokens, k_length, per_program,
            k_batch, k_along, k_across, gk_batch, gk_along, gk_across, root, WIDTH, BLOCK_T, BLOCK_D,
        )  # fmt: skip
