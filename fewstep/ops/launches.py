"""What a kernel can do, in parts that are each run as a whole: the inside of a node of a compiled graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._functorch import eager_transforms
from torch.autograd import forward_ad

Tensors = Sequence[Tensor]
Maybe = Sequence[Tensor | None]


@dataclass(frozen=True)
class Call:
    """The arguments of a call; ``tensors`` are those that a derivative can be about."""

    args: list[Any]

    @property
    def tensors(self) -> list[Tensor]:
        """The tensor arguments, without those of layouts, in order."""
        return [a for a in self.args if isinstance(a, Tensor)]

    def replaced(self, tensors: Tensors) -> list[Any]:
        """The arguments with other tensors."""
        found = iter(tensors)
        return [next(found) if isinstance(a, Tensor) else a for a in self.args]


def kept(values: Sequence[Any], where: Sequence[Any]) -> list[Any]:
    """The values at places where something is (neither None nor False)."""
    return [v for v, w in zip(values, where, strict=True) if w is not None and w is not False]


class Launches:
    """Value, gradients, tangent of a kernel: without a graph, on tensors that carry no tangents.

    This class works everything out from one function by torch's own differentiation, at the price of running it again
    in the backward pass. A kernel with more direct ways overrides them.

    Args:
        run: the function, differentiable by autograd and, with ``jvp``, by ``torch.func.jvp``.
        like: for the same arguments, with None in place of each layout, empty tensors of the shapes and types of the
            results. All of them are contiguous.
        jvp: whether there is a tangent.
        outputs: the first so many results are what the kernel returns; the others are what ``gradients`` asks for.
    """

    def __init__(
        self, run: Callable[..., Any], like: Callable[..., Tensors], jvp: bool = True, outputs: int = 1
    ) -> None:
        self.run, self.like, self.jvp, self.outputs = run, like, jvp, outputs

    def value(self, call: Call) -> Tensors:
        """The results."""
        return self._outs(call.args)

    def gradients(self, call: Call, results: Tensors, grads: Maybe, wanted: Sequence[bool]) -> Tensors:
        """Gradients of the wanted ones among ``call.tensors``, for those of the outputs (None is 0; not all are)."""
        leaves = [x.detach().requires_grad_(want) for x, want in zip(call.tensors, wanted, strict=True)]
        with torch.enable_grad():
            outs = kept(self._outs(call.replaced(leaves))[: self.outputs], grads)
            mine = kept(leaves, list(wanted))
            found = torch.autograd.grad(outs, mine, kept(grads, grads), allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for g, x in zip(found, mine, strict=True)]

    def tangent(self, call: Call, tangents: Maybe) -> tuple[Tensors, Tensors]:
        """The results, and the outputs' tangents for those of ``call.tensors``, of which at least one is given."""
        outs, moves = self._push(call, kept(call.tensors, tangents), kept(tangents, tangents), tangents)
        return outs, moves[: self.outputs]

    def second(self, call: Call, tangents: Maybe, grads: Maybe, wanted: Sequence[bool]) -> Tensors:
        """Gradients for those of the outputs' tangents (None is 0).

        ``wanted`` and the result: ``call.tensors`` first, then the tangents that are given.
        """
        count = len(call.tensors)

        def pushed(*inputs: Tensor) -> tuple[Tensor, ...]:
            some = Call(call.replaced(inputs[:count]))
            moves = self._push(some, kept(inputs[:count], tangents), inputs[count:], tangents)[1]
            return tuple(kept(moves[: self.outputs], grads))

        with torch.enable_grad():
            pull = torch.func.vjp(pushed, *call.tensors, *kept(tangents, tangents))[1]
        return kept(pull(tuple(kept(grads, grads))), list(wanted))

    def _outs(self, args: Sequence[Any]) -> tuple[Tensor, ...]:
        out = self.run(*args)
        return (out,) if isinstance(out, Tensor) else tuple(out)

    def _push(self, call: Call, moving: Tensors, moves: Tensors, where: Maybe) -> tuple[Tensors, Tensors]:
        def some(*inputs: Tensor) -> tuple[Tensor, ...]:
            found = iter(inputs)
            return self._outs(
                call.replaced([x if t is None else next(found) for x, t in zip(call.tensors, where, strict=True)])
            )

        with _forward_mode():
            found: Any = torch.func.jvp(some, tuple(moving), tuple(moves))
        return found[0], found[1]


@contextmanager
def _forward_mode() -> Iterator[None]:
    """``torch.func.jvp`` where a level of dual numbers is open that its bookkeeping knows nothing of.

    torch has one such level, opened by the outermost jvp. A compiled graph opens it by itself.
    """
    try:
        torch._C._exit_dual_level(torch._C._enter_dual_level())
    except RuntimeError:
        before, forward_ad._current_level = forward_ad._current_level, 0
        eager_transforms.JVP_NESTING += 1
        try:
            yield
        finally:
            eager_transforms.JVP_NESTING -= 1
            forward_ad._current_level = before
    else:
        yield
