"""What happens to a kernel's torch ops under differentiation, in both modes.

torch's own ``custom_op`` drops tangents without a word, so this is written out: an op with a tangent on its inputs
becomes the op that makes value and tangent together, and what has no derivative raises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._functorch.autograd_function import enable_single_level_autograd_function  # type: ignore[attr-defined]
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from fewstep.errors import FewstepError
from fewstep.ops.tangents import needs_backward
from fewstep.ops.wire import marks, places, spread

if TYPE_CHECKING:
    from fewstep.ops.nodes import Node

Op = Callable[[str, list[Tensor], list[int], list[float]], list[Tensor]]


def value(node: Node, op: Op, spec: str, tensors: list[Tensor], *numbers: Any) -> list[Tensor]:
    """The op of the value, above autograd."""
    duals = [forward_ad.unpack_dual(tensors[i], level=0) for i in places(spec)]
    if any(dual.tangent is not None for dual in duals):
        return _pushed(node, spec, tensors, duals, *numbers)
    if not needs_backward(*tensors):  # in a transform, the level further out is asked next
        return _below(op, spec, tensors, *numbers)
    return _apply(_Value, node, spec, *numbers, *tensors)


def _pushed(node: Node, spec: str, tensors: list[Tensor], duals: list[Any], *numbers: Any) -> list[Tensor]:
    if not node.of.jvp:
        raise FewstepError(f"op fewstep::{node.name}: no forward-mode derivative, and an input carries a tangent")
    plain, moves = list(tensors), [dual.tangent for dual in duals]
    for i, dual in zip(places(spec), duals, strict=True):
        if dual.tangent is not None:  # the others stay the very tensors that they are
            plain[i] = dual.primal
    found = node.tangent(f"{spec}|{marks(moves)}", plain + [t for t in moves if t is not None], *numbers)
    outs, size = node.of.outputs, len(found) - node.of.outputs
    pairs = zip(found[:outs], found[size:], strict=True)
    return [forward_ad.make_dual(y, t, level=0) for y, t in pairs] + found[outs:size]


def tangent(node: Node, op: Op, spec: str, tensors: list[Tensor], *numbers: Any) -> list[Tensor]:
    """The op of value and tangent, above autograd."""
    _refuse_tangents(node, tensors)
    if not needs_backward(*tensors):
        return _below(op, spec, tensors, *numbers)
    return _apply(_Both, node, spec, *numbers, *tensors)


def last(node: Node, op: Op, spec: str, tensors: list[Tensor], *numbers: Any) -> list[Tensor]:
    """An op of gradients: whoever asks for a derivative of it gets an error."""
    _refuse_tangents(node, tensors)
    if not needs_backward(*tensors):
        return _below(op, spec, tensors, *numbers)
    return _apply(_Last, node, op, spec, *numbers, *tensors)


def _below(op: Op, *args: Any) -> list[Tensor]:
    # A Function's forward hides tangents, from the levels further out too.
    with torch._C._AutoDispatchBelowAutograd(), forward_ad._set_fwd_grad_enabled(True):
        return op(*args)


def _apply(function: Any, *args: Any) -> list[Tensor]:
    """The function at this level only: ``torch.func`` brings us to each of its levels by itself."""
    with enable_single_level_autograd_function():
        return list(function.apply(*args))


def _refuse_tangents(node: Node, tensors: list[Tensor]) -> None:
    if any(forward_ad.unpack_dual(x, level=0).tangent is not None for x in tensors):
        raise _too_deep(node)


def _too_deep(node: Node) -> FewstepError:
    return FewstepError(f"op fewstep::{node.name}: no derivatives of its derivatives inside torch.compile")


class _Value(_SingleLevelFunction):
    """(node, text, integers, floats, tensors) to the results."""

    @staticmethod
    def forward(ctx: Any, node: Node, spec: str, ints: list[int], floats: list[float], *tensors: Tensor) -> Any:
        results = _below(node.value, spec, list(tensors), ints, floats)
        ctx.node, ctx.spec, ctx.numbers = node, spec, (ints, floats)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*results[node.of.outputs :])
        ctx.save_for_backward(*tensors, *results)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        node, at = ctx.node, places(ctx.spec)
        wanted = [ctx.needs_input_grad[4 + i] for i in at]
        found = _gradients(node, ctx.spec, list(ctx.saved_tensors), grads[: node.of.outputs], wanted, *ctx.numbers)
        return (None, None, None, None, *_placed(len(ctx.needs_input_grad) - 4, at, found))


class _Both(_SingleLevelFunction):
    """(node, text, integers, floats, tensors and tangents) to the results and the outputs' tangents."""

    @staticmethod
    def forward(ctx: Any, node: Node, spec: str, ints: list[int], floats: list[float], *tensors: Tensor) -> Any:
        found = _below(node.tangent, spec, list(tensors), ints, floats)
        ctx.node, ctx.spec, ctx.numbers = node, spec, (ints, floats)
        ctx.size = len(found) - node.of.outputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*found[node.of.outputs : ctx.size])
        ctx.save_for_backward(*tensors, *found[: ctx.size])
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        node, (spec, moved) = ctx.node, ctx.spec.split("|")
        moves, at = moved.count("1"), places(spec)
        saved, count = list(ctx.saved_tensors), len(ctx.needs_input_grad) - 4
        inputs, results = saved[: count - moves], saved[count:]
        at = [*at, *range(count - moves, count)]
        wanted = [ctx.needs_input_grad[4 + i] for i in at]
        args = len(at) - moves
        first = _gradients(node, spec, inputs + results, grads[: node.of.outputs], wanted[:args], *ctx.numbers)
        more = _second(node, ctx.spec, saved[:count], grads[ctx.size :], wanted, *ctx.numbers)
        both = [
            b if a is None else a if b is None else a + b for a, b in zip(first + [None] * moves, more, strict=True)
        ]
        return (None, None, None, None, *_placed(count, at, both))


class _Last(_SingleLevelFunction):
    """(node, op, text, integers, floats, tensors) to gradients that have none themselves."""

    @staticmethod
    def forward(ctx: Any, node: Node, op: Op, spec: str, ints: list[int], floats: list[float], *tensors: Tensor) -> Any:
        ctx.node = node
        return tuple(_below(op, spec, list(tensors), ints, floats))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        raise _too_deep(ctx.node)


Found = list[Tensor | None]
Grads = Sequence[Tensor | None]


def _gradients(
    node: Node, spec: str, saved: list[Tensor], grads: Grads, wanted: Sequence[bool], *numbers: Any
) -> Found:
    """Of the tensor arguments, None where not wanted."""
    given = [g for g in grads if g is not None]
    if not given or not any(wanted):
        return [None] * len(wanted)
    found = node.backward(f"{spec}|{marks(wanted)}|{marks(grads)}", saved + given, *numbers)
    return spread(marks(wanted), found)


def _second(node: Node, spec: str, saved: list[Tensor], grads: Grads, wanted: Sequence[bool], *numbers: Any) -> Found:
    """Of the tensor arguments and the tangents, None where not wanted."""
    given = [g for g in grads if g is not None]
    if not given or not any(wanted):
        return [None] * len(wanted)
    found = node.second(f"{spec}|{marks(grads)}|{marks(wanted)}", saved + given, *numbers)
    return spread(marks(wanted), found)


def _placed(count: int, at: Sequence[int], values: Grads) -> Found:
    """``values`` at their places among ``count``."""
    found: Found = [None] * count
    for i, v in zip(at, values, strict=True):
        found[i] = v
    return found
