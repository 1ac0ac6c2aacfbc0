"""Derivatives of attention in plain torch, for what the kernels do not provide: higher derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.ops.attention import reference_varlen
from fewstep_kernels.attention.schedule import Sequences

Maybe = Tensor | None


def plain_attention(q: Tensor, k: Tensor, v: Tensor, seq: Sequences) -> Tensor:
    """The same as the kernels, by the reference implementation."""
    if seq.order is None:
        return reference_varlen(q, k, v, seq.q, seq.k)
    out = reference_varlen(q[seq.order], k[seq.order], v[seq.order], seq.q, seq.k)
    return torch.zeros_like(out).index_copy(0, seq.order, out)


def attention_gradients(inputs: tuple[Tensor, Tensor, Tensor], grad: Tensor, seq: Sequences) -> tuple[Tensor, ...]:
    """Gradients of (q, k, v), themselves differentiable."""
    found: tuple[Tensor, ...] = torch.func.vjp(lambda q, k, v: plain_attention(q, k, v, seq), *inputs)[1](grad)
    return found


def tangent_gradients(
    inputs: tuple[Tensor, Tensor, Tensor], tangents: tuple[Maybe, Maybe, Maybe], grad: Tensor, seq: Sequences
) -> list[Maybe]:
    """Gradients of (q, k, v, tq, tk, tv) for a gradient of attention's tangent; None for an absent tangent."""
    given = [t is not None for t in tangents]

    def pushed(*all_six: Tensor) -> Tensor:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return plain_attention(q, k, v, seq)

        found: Tensor = torch.func.jvp(attend, all_six[:3], all_six[3:])[1]
        return found

    filled = [torch.zeros_like(x) if t is None else t for x, t in zip(inputs, tangents, strict=True)]
    found = torch.func.vjp(pushed, *inputs, *filled)[1](grad)
    return [g if keep else None for g, keep in zip(found, [True] * 3 + given, strict=True)]
