"""Attention as autograd functions: reverse mode, forward mode, and value and tangent in one launch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fewstep.ops.inputs import carries_tangent
from fewstep_kernels.attention import launch
from fewstep_kernels.attention.plain import attention_gradients, tangent_gradients
from fewstep_kernels.attention.schedule import Sequences

Tensors = tuple[Tensor, Tensor, Tensor]
Tangents = tuple[Tensor | None, Tensor | None, Tensor | None]


class Attention(torch.autograd.Function):
    """(q, k, v) [T, H, D] to the attention [T, H, D] and the base-2 log-sum-exp of its scores [H, T]."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, seq: Sequences) -> tuple[Tensor, Tensor]:
        return launch.forward(q, k, v, seq)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        q, k, v, ctx.seq = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(q, k, v, *output)
        ctx.save_for_forward(q, k, v)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None
        return (*_gradients(ctx.saved_tensors, grad, ctx.seq), None)

    @staticmethod
    def jvp(ctx: Any, tq: Tensor | None, tk: Tensor | None, tv: Tensor | None, _: None) -> tuple[Tensor, None]:
        q, k, v = ctx.saved_tensors[:3]
        return _pushed(q, k, v, (tq, tk, tv), ctx.seq)[1], None


class ValueAndTangent(torch.autograd.Function):
    """(q, k, v, tq, tk, tv) to the attention, its tangent and the log-sum-exp. Some tangents may be None, but not all.

    The value's gradient comes from the backward kernels. A gradient with respect to the tangent (a second derivative)
    is computed in plain torch, with the time and memory of explicit attention.
    """

    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, tq: Tensor | None, tk: Tensor | None, tv: Tensor | None, seq: Sequences
    ) -> Tensors:
        return launch.tangent(q, k, v, tq, tk, tv, seq)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        *tensors, ctx.seq = inputs
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(*tensors, output[0], output[2])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, tgrad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        q, k, v, tq, tk, tv, out, lse = ctx.saved_tensors
        found: list[Tensor | None] = [None] * 6
        if grad is not None:
            found[:3] = _gradients((q, k, v, out, lse), grad, ctx.seq)
        if tgrad is not None:
            more = tangent_gradients((q, k, v), (tq, tk, tv), tgrad, ctx.seq)
            found = [b if a is None else a if b is None else a + b for a, b in zip(found, more, strict=True)]
        return (*found, None)


def _gradients(saved: tuple[Tensor, ...], grad: Tensor, seq: Sequences) -> tuple[Tensor, ...]:
    """Gradients by the kernels, or in plain torch if they are to be differentiated again."""
    q, k, v, out, lse = saved
    if torch.is_grad_enabled() or carries_tangent(q, k, v, grad):
        return attention_gradients((q, k, v), grad, seq)
    return launch.backward(q, k, v, out, lse, grad, seq, torch.are_deterministic_algorithms_enabled())


def _pushed(q: Tensor, k: Tensor, v: Tensor, tangents: Tangents, seq: Sequences) -> tuple[Tensor, Tensor]:
    """Value and tangent."""
    found: Any = ValueAndTangent.apply(q, k, v, *tangents, seq)  # type: ignore[no-untyped-call]
    return found[0], found[1]


def differentiable(q: Tensor, k: Tensor, v: Tensor, seq: Sequences) -> Tensor:
    """Attention [T, H, D] by the kernels, differentiable, and with a tangent where an input carries one.

    Dual tensors are unpacked here: a Function's ``forward`` does not see tangents, and its ``jvp`` would have to
    compute the value a second time.
    """
    if not carries_tangent(q, k, v):
        out: tuple[Tensor, Tensor] = Attention.apply(q, k, v, seq)  # type: ignore[no-untyped-call]
        return out[0]
    (q, tq), (k, tk), (v, tv) = (forward_ad.unpack_dual(x, level=0) for x in (q, k, v))
    dual: Tensor = forward_ad.make_dual(*_pushed(q, k, v, (tq, tk, tv), seq), level=0)
    return dual
