"""Submanifold convolution: each voxel sums over its existing neighbours, and no voxel is added.

A convolution over a neighbour map is two bilinear products, ``convolve`` and ``outer``; all of its derivatives, of any
order, are made of the same two (:class:`Convolution`, :class:`Outer`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fewstep.core.layout import Packed
from fewstep.errors import FewstepError, invalid
from fewstep.ops import Kernel, call, register
from fewstep.ops.example import ROWS, Draw
from fewstep.ops.inputs import lowered
from fewstep.ops.table import ALL
from fewstep_shapes3d.gemm import product, row_sum
from fewstep_shapes3d.sparse.geometry import Neighbours, check_coords, example_layout, neighbours


class Map(Protocol):
    """A neighbour map with the two bilinear products of which a convolution and its derivatives are made."""

    def convolve(self, x: Tensor, matrices: Tensor) -> Tensor:
        """[T, Ci] by [K, Ci, Co] to [T, Co]: for each voxel the sum over its neighbours' products."""

    def outer(self, x: Tensor, grad: Tensor) -> Tensor:
        """[T, Ci] and [T, Co] to [K, Ci, Co]: for each offset, inputs times the gradients of the outputs they reach."""


@dataclass(frozen=True, eq=False)
class ByOffset:
    """A ``Map`` in torch's own ops: a gather, a product and an addition for each offset that any voxel has."""

    near: Neighbours

    def convolve(self, x: Tensor, matrices: Tensor) -> Tensor:
        centre, turned = len(matrices) // 2, matrices.mT.contiguous()
        out = product(x, turned[centre])  # needs no gather
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


def _apply(function: Any, *args: Any) -> Tensor:
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
            gx = _apply(Convolution, grad, matrices.flip(0).mT, ctx.near)
        if ctx.needs_input_grad[1]:
            gw = _apply(Outer, x, grad, ctx.near)
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
        gx = _apply(Convolution, grad, gw.flip(0).mT, ctx.near)
        return gx, _apply(Convolution, x, gw, ctx.near), None

    @staticmethod
    def jvp(ctx: Any, tx: Tensor | None, tg: Tensor | None, _: None) -> Tensor:
        x, grad = ctx.saved_tensors
        return _product_rule(Outer, (x, grad), (tx, tg), ctx.near)


def _product_rule(
    function: Any, values: tuple[Tensor, Tensor], tangents: tuple[Tensor | None, Tensor | None], near: Map
) -> Tensor:
    """f(da, b) + f(a, db) of a bilinear f, through the Function so that a graph is kept; None is an absent tangent."""
    (a, b), (ta, tb) = values, tangents
    parts = [
        _apply(function, *pair, near) for pair in ((ta, b), (a, tb)) if pair[0] is not None and pair[1] is not None
    ]
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def _matrices(weight: Tensor) -> Tensor:
    """[Co, k, k, k, Ci] to one [Ci, Co] matrix for each offset: [k^3, Ci, Co].

    A kernel of size 1 is *read* as a [Ci, Co] matrix, not transposed into one, as in the library that the official
    checkpoints were trained with.
    """
    out, inner = weight.shape[0], weight.shape[-1]
    if weight.shape[1] == 1:
        return weight.reshape(1, inner, out)
    return weight.flatten(1, 3).permute(1, 2, 0)


def reference_convolution(x: Tensor, weight: Tensor, layout: Packed) -> Tensor:
    """Gather, multiply, add, offset by offset, in plain differentiable torch: the oracle."""
    matrices = _matrices(weight)
    out = x.new_zeros(len(x), weight.shape[0])
    for matrix, (rows, others) in zip(matrices, neighbours(layout, weight.shape[1]).pairs, strict=True):
        out = out.index_add(0, rows, x[others] @ matrix)
    return out


def convolution(x: Tensor, weight: Tensor, near: Map) -> Tensor:
    """The convolution over a map, with all derivatives: [T, Ci] and weight [Co, k, k, k, Ci] to [T, Co]."""
    return _apply(Convolution, x, _matrices(weight), near)


def offset_convolution(x: Tensor, weight: Tensor, layout: Packed) -> Tensor:
    """A gather, a matrix product and an addition for each offset that any voxel has; the backward pass likewise."""
    return convolution(x, weight, ByOffset(neighbours(layout, weight.shape[1])))


def _example(draw: Draw) -> tuple[Any, ...]:
    return draw(ROWS, 64), draw(64, 3, 3, 3, 64), example_layout(draw)


register(Kernel("reference", "submanifold_conv", reference_convolution, ALL, 0, "reference", example=_example))
register(Kernel("by-offset", "submanifold_conv", offset_convolution, ALL, 10, "torch"))


def submanifold_conv(x: Tensor, weight: Tensor, bias: Tensor | None, layout: Packed) -> Tensor:
    """out[p] = bias + sum over offsets of W[:, i, j, k, :] x[p + (i, j, k) - k//2], over existing neighbours.

    Args:
        x: [T, Ci], packed as ``layout``, which has coords.
        weight: [Co, k, k, k, Ci], first kernel axis along x; k odd. With k = 1 the memory is read as [Ci, Co].
        bias: [Co], added once, or None.

    Returns:
        [T, Co].

    Raises:
        FewstepError: for shapes or types that do not fit, or a layout without coords.
    """
    x, weight, *more = lowered(x, weight, *([] if bias is None else [bias]))
    _check(x, weight, layout)
    alone = weight.shape[1] == 1  # no neighbours: a plain product
    out: Tensor = product(x, _matrices(weight)[0].mT) if alone else call("submanifold_conv", x, weight, layout)
    return out + more[0] if more else out


def _check(x: Tensor, weight: Tensor, layout: Packed) -> None:
    if weight.dim() != 5 or len(set(weight.shape[1:4])) != 1:
        raise invalid("shape of weight", tuple(weight.shape), "[Co, k, k, k, Ci]")
    if x.dim() != 2 or x.shape != (layout.rows, weight.shape[-1]):
        raise invalid("shape of x", tuple(x.shape), f"[T, Ci] = [{layout.rows}, {weight.shape[-1]}]")
    if x.dtype != weight.dtype:
        raise FewstepError(f"x is {x.dtype} and weight {weight.dtype}; accepted: one type")
    if not x.is_floating_point():
        raise invalid("type of x", str(x.dtype), "a floating-point type")
    if not (x.is_meta and weight.is_meta) and not x.device == weight.device == layout.cu_seqlens.device:
        places = [str(d) for d in (x.device, weight.device, layout.cu_seqlens.device)]
        raise invalid("devices of x, weight and layout", places, "one device")
    if weight.shape[1] % 2 == 0:
        raise invalid("kernel_size", weight.shape[1], "an odd number")
    check_coords(layout)
