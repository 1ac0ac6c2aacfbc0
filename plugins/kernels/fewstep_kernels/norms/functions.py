"""Autograd for fused kernels: first derivatives by kernels, higher ones through the op's reference (the oracle).

Autograd does not see a kernel launched inside ``backward`` or ``jvp``. Each is therefore launched by a ``Function`` of
its own, whose derivatives differentiate the oracle: slower, but correct.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fewstep.ops.inputs import carries_tangent
from fewstep_kernels.support import on_its_device

Tensors = tuple[Tensor, ...]
Tangents = Sequence[Tensor | None]


class FusedOp(Protocol):
    """One call of an op: the object holds the non-tensor arguments, tensors are passed to its methods."""

    def plain(self, *tensors: Tensor) -> Tensors:
        """The values by the oracle."""
        ...

    def launch(self, tensors: Tensors, tangents: Tangents | None, values: bool) -> tuple[Tensors, Tensors]:
        """Values (if ``values``, else ()) and their tangents (if given those of the inputs, else ()), in one launch."""
        ...

    def gradients(self, tensors: Tensors, grads: Tensors, wanted: Sequence[bool]) -> list[Tensor]:
        """Gradients of the inputs that are ``wanted``."""
        ...


def call(op: FusedOp, *tensors: Tensor) -> Tensors:
    """The op's values; under forward-mode differentiation, values and tangents come from a single launch."""
    if not carries_tangent(*tensors):
        return _apply(Value, op, *tensors)
    duals = [forward_ad.unpack_dual(x, level=0) for x in tensors]
    if all(dual.tangent is None for dual in duals):  # tangents belong to an outer transform, which Value.jvp serves
        return _apply(Value, op, *tensors)
    out = _apply(Pushed, op, len(tensors), True, *[d.primal for d in duals], *[d.tangent for d in duals])
    half = len(out) // 2
    return tuple([forward_ad.make_dual(y, t, level=0) for y, t in zip(out[:half], out[half:], strict=True)])


@on_its_device
def _launch(first: Tensor, op: FusedOp, tensors: Tensors, tangents: Tangents | None, values: bool) -> Tensors:
    found, pushed = op.launch(tensors, tangents, values)
    return (*found, *pushed)


@on_its_device
def _gradients(first: Tensor, op: FusedOp, tensors: Tensors, grads: Tensors, wanted: Sequence[bool]) -> Tensors:
    return tuple(op.gradients(tensors, grads, wanted))


def _apply(function: Any, *args: Any) -> Tensors:
    """``Function.apply``, which torch leaves untyped."""
    return cast(Tensors, function.apply(*args))


def _saved(ctx: Any, tensors: Sequence[Tensor | None]) -> None:
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _filled(given: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensors:
    return tuple(torch.zeros_like(x) if g is None else g for g, x in zip(given, like, strict=True))


def _pull(function: Callable[..., Tensors], inputs: Tensors, grads: Sequence[Tensor | None]) -> Tensors:
    """The gradients of all inputs, by plain torch."""
    pulled: Any = torch.func.vjp(function, *inputs)
    return cast(Tensors, pulled[1](_filled(grads, pulled[0])))


def _push(function: Callable[..., Tensors], inputs: Tensors, tangents: Tangents) -> Tensors:
    """The tangents of all values, by plain torch."""
    return cast(Tensors, torch.func.jvp(function, inputs, _filled(tangents, inputs))[1])


class Value(torch.autograd.Function):
    """(op, tensors) to values. Saves only the inputs: statistics are recomputed in the backward pass."""

    @staticmethod
    def forward(op: FusedOp, *tensors: Tensor) -> Tensors:
        return _launch(tensors[0], op, tensors, None, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.op = inputs[0]
        _saved(ctx, inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *_backward(ctx.op, ctx.saved_tensors, grads, ctx.needs_input_grad[1:]))

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Tensors:
        return _apply(Pushed, ctx.op, len(tangents), False, *ctx.saved_tensors, *tangents)


def _backward(op: FusedOp, tensors: Tensors, grads: Tensors, wanted: Sequence[bool]) -> list[Tensor | None]:
    found = iter(_apply(Gradients, op, tuple(wanted), *tensors, *grads))
    return [next(found) if want else None for want in wanted]


class Gradients(torch.autograd.Function):
    """(op, wanted, tensors, gradients of the values) to the gradients of the wanted inputs."""

    @staticmethod
    def forward(op: FusedOp, wanted: tuple[bool, ...], *inputs: Tensor) -> Tensors:
        return _gradients(inputs[0], op, inputs[: len(wanted)], inputs[len(wanted) :], wanted)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        op, wanted = inputs[:2]

        def plain(*inputs: Tensor) -> Tensors:
            found = _pull(op.plain, inputs[: len(wanted)], inputs[len(wanted) :])
            return tuple(g for g, want in zip(found, wanted, strict=True) if want)

        ctx.plain = plain
        _saved(ctx, inputs[2:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *_pull(ctx.plain, ctx.saved_tensors, grads))

    @staticmethod
    def jvp(ctx: Any, _op: None, _wanted: None, *tangents: Tensor | None) -> Tensors:
        return _push(ctx.plain, ctx.saved_tensors, tangents)


class Pushed(torch.autograd.Function):
    """(op, n, values, n tensors, n tangents or None) to the values, if ``values``, and their tangents."""

    @staticmethod
    def forward(op: FusedOp, count: int, values: bool, *inputs: Tensor | None) -> Tensors:
        tensors = cast(Tensors, inputs[:count])
        return _launch(tensors[0], op, tensors, inputs[count:], values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.op, ctx.count, ctx.values = op, count, values = inputs[:3]
        ctx.set_materialize_grads(False)  # a gradient of the tangents is rarely needed
        ctx.like = [(tuple(y.shape), y.dtype, y.device) for y in output[: len(output) // 2]]
        _saved(ctx, inputs[3:])

        def plain(*inputs: Tensor) -> Tensors:
            pushed: Any = torch.func.jvp(op.plain, inputs[:count], inputs[count:])
            found, tangents = pushed[:2]
            return (*found, *tangents) if values else tuple(tangents)

        ctx.plain = plain

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        wanted, tensors = ctx.needs_input_grad[3:], ctx.saved_tensors[: ctx.count]
        half = len(grads) // 2 if ctx.values else 0
        if half and all(g is None for g in grads[half:]):
            pairs = zip(grads[:half], ctx.like, strict=True)
            given = tuple(torch.zeros(s, dtype=d, device=at) if g is None else g for g, (s, d, at) in pairs)
            found = _backward(ctx.op, tensors, given, wanted[: ctx.count])
            return (None, None, None, *found, *[None] * ctx.count)
        inputs = (*tensors, *_filled(ctx.saved_tensors[ctx.count :], tensors))
        pulled = zip(_pull(ctx.plain, inputs, grads), wanted, strict=True)
        return (None, None, None, *[g if want else None for g, want in pulled])

    @staticmethod
    def jvp(ctx: Any, _op: None, _count: None, _values: None, *tangents: Tensor | None) -> Tensors:
        tensors = ctx.saved_tensors[: ctx.count]
        return _push(ctx.plain, (*tensors, *_filled(ctx.saved_tensors[ctx.count :], tensors)), tangents)
