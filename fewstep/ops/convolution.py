"""Submanifold convolution: each voxel looks at those of its neighbours that exist, and no voxel is added."""

from __future__ import annotations

from torch import Tensor

from fewstep.core.layout import Packed
from fewstep.errors import FewstepError, invalid
from fewstep.ops.autocast import lowered
from fewstep.ops.gemm import product
from fewstep.ops.geometry import check_coords, neighbours
from fewstep.ops.launches import Launches
from fewstep.ops.maps import ByOffset, Map, convolve
from fewstep.ops.opaque import opaque
from fewstep.ops.table import Kernel, dispatch, register

ALL = frozenset({"forward", "backward", "jvp"})


def _matrices(weight: Tensor) -> Tensor:
    """[Co, k, k, k, Ci] to one [Ci, Co] matrix for each offset: [k^3, Ci, Co].

    A kernel of size 1 is *read* as a [Ci, Co] matrix, not transposed into one: so does the library that the official
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
    """The convolution [T, Ci] to [T, Co] over a map, with backward and forward-mode; weight [Co, k, k, k, Ci]."""
    return convolve(x, _matrices(weight).contiguous(), near)


def offset_convolution(x: Tensor, weight: Tensor, layout: Packed) -> Tensor:
    """A gather, a matrix product and an addition for each offset that any voxel has, with a backward of the same."""
    size = weight.shape[1]
    return convolution(x, weight, layout.once(("by-offset", size), lambda: ByOffset(neighbours(layout, size))))


def like_voxels(x: Tensor, weight: Tensor, *_: object) -> tuple[Tensor]:
    """An empty result of a convolution."""
    return (x.new_empty(len(x), len(weight)),)


for _name, _backend, _priority, _run in (
    ("reference", "reference", 0, reference_convolution),
    ("by-offset", "torch", 10, offset_convolution),
):
    _node = opaque(f"submanifold_conv_{_backend}", Launches(_run, like_voxels))
    register(Kernel(_name, "submanifold_conv", _node, ALL, _priority, _backend))


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
    if weight.shape[1] == 1:  # no neighbours: a plain product
        out = product(x, _matrices(weight)[0].mT)
    else:
        out = dispatch("submanifold_conv", x, weight, layout).run(x, weight, layout)
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
    if not x.device == weight.device == layout.cu_seqlens.device:
        places = [str(d) for d in (x.device, weight.device, layout.cu_seqlens.device)]
        raise invalid("devices of x, weight and layout", places, "one device")
    if weight.shape[1] % 2 == 0:
        raise invalid("kernel_size", weight.shape[1], "an odd number")
    check_coords(layout)
