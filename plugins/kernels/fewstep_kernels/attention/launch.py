"""Launches of the attention kernels, on plain tensors: no tangents, no graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep_kernels.attention import backward_jit, forward_jit
from fewstep_kernels.attention.constants import constants, precision, scale, widths
from fewstep_kernels.attention.schedule import Sequences, bounds, slots, stretches, tiles
from fewstep_kernels.attention.tiles import DELTA, SEPARATE, WAYS, candidates
from fewstep_kernels.support import on_its_device
from fewstep_kernels.tuning import Tile, chosen

LOG2E = 1.4426950408889634
Gradients = tuple[Tensor, Tensor, Tensor]


def packed(x: Tensor) -> Tensor:
    """``x`` itself if the channels of a head are contiguous, as in slices of a fused projection; else a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _steps(*tensors: Tensor) -> list[int]:
    """The strides of rows and of heads of each tensor."""
    return [x.stride(i) for x in tensors for i in (0, 1)]


def _layout(q: Tensor, seq: Sequences, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tiles, boundaries of queries and of keys, and the order of rows (a placeholder where there is none)."""
    order = seq.order32
    return rows, bounds(seq.q), bounds(seq.k), rows if order is None else order


def _chosen(kind: str, q: Tensor, seq: Sequences, run: Any, among: Sequence[Tile] | None = None) -> Tile:
    head = q.shape[-1]
    form = "windows" if seq.order is not None else "rows" if seq.q is seq.k else "cross"
    exact = precision(q)
    key = (f"attention-{kind}", q.device, str(q.dtype).removeprefix("torch."), exact, head, form, seq.short)
    return chosen(key, among or candidates(kind, q.dtype, head, seq.short, exact == "ieee"), run)


@on_its_device
def forward(q: Tensor, k: Tensor, v: Tensor, seq: Sequences) -> tuple[Tensor, Tensor]:
    """Attention [T, H, D], and the base-2 log-sum-exp of its scores, float32 [H, T]."""
    q, k, v = (packed(x) for x in (q, k, v))
    out, lse = torch.empty(q.shape, dtype=q.dtype, device=q.device), _rows(q)

    def run(tile: Tile) -> None:
        work = tiles(seq.q, seq.k, tile.sizes["BLOCK_M"])
        forward_jit.forward_kernel[len(work), q.shape[1]](
            q, k, v, out, lse, *_layout(q, seq, work), scale(q) * LOG2E,
            *_steps(q, k, v, out), lse.stride(0), **constants("forward", q, seq), **tile.options,
        )  # fmt: skip

    if out.numel():
        run(_chosen("forward", q, seq, run))
    return out, lse


@on_its_device
def tangent(
    q: Tensor, k: Tensor, v: Tensor, tq: Tensor | None, tk: Tensor | None, tv: Tensor | None, seq: Sequences
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention and its tangent, both [T, H, D], and the log-sum-exp as of :func:`forward`, in one launch."""
    q, k, v = (packed(x) for x in (q, k, v))
    pushed = [x if t is None else packed(t) for x, t in ((q, tq), (k, tk), (v, tv))]
    out, lse = torch.empty(q.shape, dtype=q.dtype, device=q.device), _rows(q)
    tout = torch.zeros_like(out) if not k.numel() else torch.empty_like(out)
    has = {"HAS_Q": tq is not None, "HAS_K": tk is not None, "HAS_V": tv is not None}

    def run(tile: Tile) -> None:
        work = tiles(seq.q, seq.k, tile.sizes["BLOCK_M"])
        forward_jit.tangent_kernel[len(work), q.shape[1]](
            q, k, v, *pushed, out, tout, lse, *_layout(q, seq, work), scale(q) * LOG2E, scale(q),
            *_steps(q, k, v, *pushed, out), lse.stride(0), **has,
            **constants("tangent", q, seq), **tile.options,
        )  # fmt: skip

    if out.numel():
        run(_chosen("tangent", q, seq, run))
    return out, tout, lse


@on_its_device
def backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, grad: Tensor, seq: Sequences, deterministic: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, contiguous and in their types.

    Args:
        out, lse: of :func:`forward` for the same inputs.
        grad: of ``out``.
        deterministic: bitwise reproducible. Otherwise the gradient of q may be summed by atomics, which saves two of
            seven matrix products, where autotuning found that faster.
    """
    q, k, v, grad = (packed(x) for x in (q, k, v, grad))
    if not q.numel():
        dk, dv = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (k, v))
        return torch.empty_like(q), dk, dv
    given = q, k, v, grad, lse, _inner(out, grad, seq)
    found: list[Tensor] = []

    def run(way: Tile) -> None:
        found[:] = _separate(*given, seq) if way is SEPARATE else _atomic(*given, seq)

    run(SEPARATE if deterministic else _chosen("backward", q, seq, run, WAYS))
    dq, dk, dv = found
    return dq, dk, dv


def _separate(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, lse: Tensor, inner: Tensor, seq: Sequences) -> Gradients:
    """One kernel for dq, one for dk and dv: seven matrix products."""
    dq = _queries(q, k, v, grad, lse, inner, seq)
    return dq, *_keys("keys", q, k, v, grad, lse, inner, dq, seq)


def _atomic(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, lse: Tensor, inner: Tensor, seq: Sequences) -> Gradients:
    """One kernel, which sums dq by atomics: five matrix products."""
    total = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    dk, dv = _keys("keys-atomic", q, k, v, grad, lse, inner, total, seq)
    return total.to(q.dtype), dk, dv


def _inner(out: Tensor, grad: Tensor, seq: Sequences) -> Tensor:
    """float32 [H, T] rowsum(out * grad)."""
    inner = _rows(out)
    grid = (-(-len(out) // DELTA.sizes["BLOCK_M"]), out.shape[1])
    backward_jit.delta_kernel[grid](
        out, grad, inner, len(out), *_steps(out, grad), inner.stride(0),
        **widths(out), **DELTA.options,
    )  # fmt: skip
    return inner


def _queries(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, lse: Tensor, inner: Tensor, seq: Sequences) -> Tensor:
    dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)

    def run(tile: Tile) -> None:
        work = tiles(seq.q, seq.k, tile.sizes["BLOCK_M"])
        backward_jit.queries_kernel[len(work), q.shape[1]](
            q, k, v, grad, lse, inner, dq, *_layout(q, seq, work), scale(q), scale(q) * LOG2E,
            *_steps(q, k, v, grad, dq), lse.stride(0), **constants("queries", q, seq), **tile.options,
        )  # fmt: skip

    run(_chosen("queries", q, seq, run))
    return dq


def _keys(
    kind: str, q: Tensor, k: Tensor, v: Tensor, grad: Tensor, lse: Tensor, inner: Tensor, dq: Tensor, seq: Sequences
) -> tuple[Tensor, Tensor]:
    """dk and dv; "keys-atomic" also adds to dq."""
    found: list[Tensor] = []

    def launch(tile: Tile, to: Tensor) -> None:
        work, heads = tiles(seq.k, seq.q, tile.sizes["BLOCK_N"]), q.shape[1]
        parts = stretches(len(work) * heads, slots(q.device, tile.warps), seq.most_queries // tile.sizes["BLOCK_M"])
        dtype = k.dtype if parts == 1 else torch.float32
        both = torch.empty(2, parts, *k.shape, dtype=dtype, device=k.device)
        backward_jit.keys_kernel[len(work), heads, parts](
            q, k, v, grad, lse, inner, to, *both, *_layout(q, seq, work), scale(q), scale(q) * LOG2E,
            *_steps(q, k, v, grad, both[0, 0]), lse.stride(0), parts, both.stride(1), ATOMIC=kind == "keys-atomic",
            **constants(kind, q, seq), **tile.options,
        )  # fmt: skip
        found[:] = both[:, 0] if parts == 1 else both.sum(1).to(k.dtype)

    if not k.numel():
        return torch.empty_like(k), torch.empty_like(v)
    # Autotuning adds to a scratch tensor, so that dq is summed only once.
    launch(_chosen(kind, q, seq, lambda tile: launch(tile, torch.empty_like(dq))), dq)
    dk, dv = found
    return dk, dv


def _rows(q: Tensor) -> Tensor:
    return torch.empty(q.shape[1], len(q), dtype=torch.float32, device=q.device)
