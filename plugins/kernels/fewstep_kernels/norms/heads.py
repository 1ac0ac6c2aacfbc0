"""Launches of the RMS norm of queries and keys, with optional rotary embedding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fewstep.ops.norms import reference_qk_rms_norm
from fewstep_kernels.norms.functions import Tangents, Tensors, call
from fewstep_kernels.norms.tiles import MANY, block, many, span, tiles
from fewstep_kernels.support import on_its_device
from fewstep_kernels.tuning import CHOSEN, Tile, chosen

FORWARD = "qk-rms-norm-forward"
ABSENT: tuple[int | None, ...] = (None, 0, 0) * 2  # strides of absent tangents
TOKENS = 64  # minimum per program instance that sums over tokens
Strides = tuple[int | None, ...]


@lru_cache(maxsize=1)
def _jit() -> Any:
    """The Triton kernels; importing them imports Triton."""
    from fewstep_kernels.norms import heads_jit

    return heads_jit


def _blocked(x: Tensor) -> Tensor:
    """[..., L, H, D] as [N, L, H, D] with contiguous channels; a view where possible."""
    x = x[None] if x.dim() == 3 else x.flatten(0, -4)
    return x if x.stride(3) == 1 else x.contiguous()


def _empty(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _strides(*tensors: Tensor | None) -> Strides:
    """Strides of samples, tokens and heads; that of samples is None if it is L token strides, the usual case."""
    found: list[int | None] = []
    for x in tensors:
        batch, along, across = (None, 0, 0) if x is None else x.stride()[:3]
        follows = x is None or len(x) == 1 or batch == x.shape[1] * along
        found += [None if follows else batch, along, across]
    return tuple(found)


@dataclass(frozen=True)
class HeadNorm:
    """One call of the op; its tensors are q, k, q_gamma, k_gamma and, with rotary embedding, cos and sin."""

    rotary: bool

    def plain(self, *tensors: Tensor) -> Tensors:
        q, k, q_gamma, k_gamma = tensors[:4]
        return reference_qk_rms_norm(q, k, q_gamma, k_gamma, (tensors[4], tensors[5]) if self.rotary else None)

    def _tables(self, tensors: Tensors) -> Sequence[Tensor | None]:
        return [table.contiguous() for table in tensors[4:]] if self.rotary else (None, None)

    def launch(self, tensors: Tensors, tangents: Tangents | None, values: bool) -> tuple[Tensors, Tensors]:
        """See :class:`FusedOp`."""
        q, k = (_blocked(x) for x in tensors[:2])
        gammas = [gamma.contiguous() for gamma in tensors[2:4]]
        pushed: Sequence[Tensor | None] = (None,) * 4 if tangents is None else tangents[:4]
        tq, tk = (None if t is None else _blocked(t) for t in pushed[:2])
        t_gammas = [None if t is None else t.contiguous() for t in pushed[2:]]
        out = [_empty(x) for x in tensors[:2]] if values else []
        t_out = [] if tangents is None else [_empty(x) for x in tensors[:2]]
        pointers = (q, k, tq, tk, *gammas, *t_gammas, *self._tables(tensors))
        _forward(pointers, (*(out or (None, None)), *(t_out or (None, None))), q, k, _strides(q, k, tq, tk))
        return tuple(out), tuple(t_out)

    def gradients(self, tensors: Tensors, grads: Tensors, wanted: Sequence[bool]) -> list[Tensor]:
        """See :class:`FusedOp`."""
        (q, k), (gq, gk) = ([_blocked(x) for x in pair] for pair in (tensors[:2], grads))
        gammas = [gamma.contiguous() for gamma in tensors[2:4]]
        dx = [_empty(x) if want else None for x, want in zip(tensors[:2], wanted[:2], strict=True)]
        pointers = (q, k, *gammas, *self._tables(tensors), gq, gk, *dx)
        sums = _backward(pointers, q, k, _strides(q, k, gq, gk), any(wanted[2:4]))
        found = [*dx, *(s.to(gamma.dtype) for s, gamma in zip(sums, gammas, strict=False))]
        return [x for x, want in zip(found, wanted, strict=False) if want and x is not None]


def _tokens(x: Tensor) -> int:
    return x.shape[0] * x.shape[1]


def _forward(pointers: Sequence[Any], out: Sequence[Any], q: Tensor, k: Tensor, strides: Strides) -> None:
    heads, width = q.shape[2:]
    tokens = _tokens(q), _tokens(k)
    if not sum(tokens):
        return

    def run(tile: Tile) -> None:
        programs = [-(-n // tile.sizes["BLOCK_T"]) for n in tokens]
        _jit().forward_kernel[(sum(programs) * heads,)](
            *pointers, *out, heads, *tokens, q.shape[1], k.shape[1], programs[0], *strides, width**0.5,
            WIDTH=width, BLOCK_D=block(width), **tile.options,
        )  # fmt: skip

    key = (FORWARD, q.device, q.dtype, width, out[0] is None, out[2] is None, many(sum(tokens)))
    run(chosen(key, tiles("BLOCK_T", block(width), backward=False), run))


def _backward(pointers: Sequence[Any], q: Tensor, k: Tensor, strides: Strides, sums: bool) -> tuple[Tensor, ...]:
    """Launch the backward kernel; returns the gradients [H, D] of both gammas if ``sums``, else ()."""
    heads, width = q.shape[2:]
    tokens = _tokens(q), _tokens(k)
    each = span(sum(tokens) * heads, TOKENS)
    programs = [-(-n // each) for n in tokens]
    partial = torch.empty(sum(programs), heads, width, device=q.device) if sums else None

    def run(tile: Tile) -> None:
        _jit().backward_kernel[(sum(programs) * heads,)](
            *pointers, partial, heads, *tokens, q.shape[1], k.shape[1], programs[0], each, *strides, width**0.5,
            WIDTH=width, BLOCK_D=block(width), **tile.options,
        )  # fmt: skip

    if sum(tokens):
        key = ("qk-rms-norm-backward", q.device, q.dtype, width, sums, many(sum(tokens)))
        run(chosen(key, tiles("BLOCK_T", block(width), backward=True), run))
    if partial is None:
        return ()
    if programs[0] == programs[1]:  # self-attention: one reduction for both
        of_q, of_k = partial.unflatten(0, (2, -1)).sum(1)
        return of_q, of_k
    return partial[: programs[0]].sum(0), partial[programs[0] :].sum(0)


def _along(x: Tensor) -> Strides | None:
    """:func:`_strides` of queries or keys [N, L, H, D] or [L, H, D]; None where :func:`_blocked` would copy."""
    strides = x.stride()
    if strides[-1] != 1 or x.ndim > 4:
        return None
    follows = x.ndim == 3 or x.shape[0] == 1 or strides[0] == x.shape[1] * strides[1]
    return None if follows else strides[0], strides[-3], strides[-2]


@on_its_device
def direct(
    q: Tensor, k: Tensor, q_gamma: Tensor, k_gamma: Tensor, rotary: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """The fast path of :func:`qk_rms_norm` where only values are needed: two look-ups and a launch."""
    of_q, of_k = _along(q), _along(k)
    heads, width = q_gamma.shape
    q_tokens, k_tokens = math.prod(q.shape[:-2]), math.prod(k.shape[:-2])
    if of_q is None or of_k is None or not q_tokens + k_tokens:
        tensors = (q, k, q_gamma, k_gamma, *(rotary or ()))
        out_q, out_k = HeadNorm(rotary is not None).launch(tensors, None, True)[0]
        return out_q, out_k
    cos, sin = (None, None) if rotary is None else (table.contiguous() for table in rotary)
    gammas = q_gamma.contiguous(), k_gamma.contiguous()
    out_q = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    out_k = torch.empty(k.shape, dtype=k.dtype, device=k.device)

    def run(tile: Tile) -> None:
        q_programs, k_programs = -(-q_tokens // tile.sizes["BLOCK_T"]), -(-k_tokens // tile.sizes["BLOCK_T"])
        _jit().forward_kernel[((q_programs + k_programs) * heads,)](
            q, k, None, None, *gammas, None, None, cos, sin, out_q, out_k, None, None,
            heads, q_tokens, k_tokens, q.shape[-3], k.shape[-3], q_programs, *of_q, *of_k, *ABSENT, width**0.5,
            WIDTH=width, BLOCK_D=block(width), **tile.options,
        )  # fmt: skip

    key = (FORWARD, q.device, q.dtype, width, False, True, q_tokens + k_tokens >= MANY)
    run(CHOSEN[key] if key in CHOSEN else chosen(key, tiles("BLOCK_T", block(width), backward=False), run))
    return out_q, out_k


def qk_rms_norm(
    q: Tensor, k: Tensor, q_gamma: Tensor, k_gamma: Tensor, rotary: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`fewstep.ops.qk_rms_norm`."""
    out_q, out_k = call(HeadNorm(rotary is not None), q, k, q_gamma, k_gamma, *(rotary or ()))
    return out_q, out_k
