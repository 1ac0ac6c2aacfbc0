"""Convolution over a map of neighbours: two bilinear products, of which every derivative is made too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fewstep.ops.gemm import product, row_sum
from fewstep.ops.geometry import Neighbours


class Map(Protocol):
    """Who neighbours whom, with the two bilinear products that a convolution and its derivatives are made of."""

    def convolve(self, x: Tensor, matrices: Tensor) -> Tensor:
        """[T, Ci] by [K, Ci, Co] to [T, Co]: for each voxel the sum over its neighbours' products."""

    def outer(self, x: Tensor, grad: Tensor) -> Tensor:
        """[T, Ci] and [T, Co] to [K, Ci, Co]: inputs times gradients of the outputs that they reached."""


@dataclass(frozen=True, eq=False)
class ByOffset:
    """A ``Map`` in torch's own ops: a gather, a product and an addition for each offset that any voxel has."""

    near: Neighbours

    def convolve(self, x: Tensor, matrices: Tensor) -> Tensor:
        centre, turned = len(matrices) // 2, matrices.mT.contiguous()
        out = product(x, turned[centre])  # where nothing is gathered
        for k, (rows, others) in enumerate(self.near.pairs):
            if k != centre and len(rows):
                out.index_add_(0, rows, product(x.index_select(0, others), turned[k]))
        return out

    def outer(self, x: Tensor, grad: Tensor) -> Tensor:
        centre = len(self.near.pairs) // 2
        found = [
            row_sum(x, grad) if k == centre else row_sum(x.index_select(0, others), grad.index_select(0, rows))
            for k, (rows, others) in enumerate(self.near.pairs)
        ]
        return torch.stack(found)


def _call(function: Any, *args: Any) -> Tensor:
    """``Function.apply``, which torch leaves untyped."""
    out: Tensor = function.apply(*args)
    return out


class Convolution(torch.autograd.Function):
    """(x, matrices, map) to ``map.convolve(x, matrices)``, with every derivative made of the same two products.

    Saves its inputs and no gathered copy of them (27 of those would be kept by plain autograd).
    """

    @staticmethod
    def forward(x: Tensor, matrices: Tensor, near: Map) -> Tensor:
        return near.convolve(x, matrices)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, matrices, ctx.near = inputs
        ctx.save_for_backward(x, matrices)
        ctx.save_for_forward(x, matrices)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, matrices = ctx.saved_tensors
        gx = gw = None
        if ctx.needs_input_grad[0]:
            # Offset k reversed is offset K-1-k: the same map serves the transposed convolution.
            gx = _call(Convolution, grad, matrices.flip(0).mT, ctx.near)
        if ctx.needs_input_grad[1]:
            gw = _call(Outer, x, grad, ctx.near)
        return gx, gw, None

    @staticmethod
    def jvp(ctx: Any, tx: Tensor | None, tm: Tensor | None, _: None) -> Tensor:
        x, matrices = ctx.saved_tensors
        return _product_rule(Convolution, (x, matrices), (tx, tm), ctx.near)


class Outer(torch.autograd.Function):
    """(x, grad, map) to ``map.outer(x, grad)``: bilinear as well, so that a gradient of the gradient exists."""

    @staticmethod
    def forward(x: Tensor, grad: Tensor, near: Map) -> Tensor:
        return near.outer(x, grad)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, grad, ctx.near = inputs
        ctx.save_for_backward(x, grad)
        ctx.save_for_forward(x, grad)

    @staticmethod
    def backward(ctx: Any, gw: Tensor) -> tuple[Tensor, Tensor, None]:
        x, grad = ctx.saved_tensors
        gx = _call(Convolution, grad, gw.flip(0).mT, ctx.near)
        return gx, _call(Convolution, x, gw, ctx.near), None

    @staticmethod
    def jvp(ctx: Any, tx: Tensor | None, tg: Tensor | None, _: None) -> Tensor:
        x, grad = ctx.saved_tensors
        return _product_rule(Outer, (x, grad), (tx, tg), ctx.near)


def _product_rule(
    function: Any, values: tuple[Tensor, Tensor], tangents: tuple[Tensor | None, Tensor | None], near: Map
) -> Tensor:
    """f(da, b) + f(a, db) of a bilinear f, through the Function so that a graph is kept; None is an absent tangent."""
    (a, b), (ta, tb) = values, tangents
    parts = [_call(function, *pair, near) for pair in ((ta, b), (a, tb)) if pair[0] is not None and pair[1] is not None]
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def convolve(x: Tensor, matrices: Tensor, near: Map) -> Tensor:
    """``near.convolve(x, matrices)`` with its derivatives: [T, Ci] by [K, Ci, Co] to [T, Co]."""
    return _call(Convolution, x, matrices, near)
