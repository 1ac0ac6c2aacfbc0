"""What the tensors of a call require of a kernel: a forward-mode tangent, a gradient, autocast's type."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import debug_unwrap

COMPILER = "torch._dynamo"  # only checked for being loaded; tests/test_compile.py fails if torch renames it


def in_transform(*tensors: Tensor) -> bool:
    """Whether a ``torch.func`` transform (grad, jvp, vmap or a composition) has wrapped one of the tensors."""
    return any(debug_unwrap(x, recurse=False) is not x for x in tensors)


def carries_tangent(*tensors: Tensor) -> bool:
    """Whether forward-mode differentiation goes through one of the tensors, or may do so.

    If so, a kernel without forward-mode support must not be chosen. Inside nested transforms torch shows only the
    innermost level, so a tensor that two transforms have wrapped counts as carrying a tangent.
    """
    return any(_carries(x) for x in tensors)


def _carries(x: Tensor) -> bool:
    inner = debug_unwrap(x, recurse=False)
    if inner is x:
        return forward_ad.unpack_dual(x).tangent is not None
    if debug_unwrap(inner, recurse=False) is not inner:
        return True
    if inner.dim() != x.dim():  # vmap, for which unpack_dual has no batching rule
        return forward_ad.unpack_dual(inner).tangent is not None
    # Level 0 by name: a jvp that torch.compile has traced opens it without unpack_dual's default knowing.
    return forward_ad.unpack_dual(x, level=0).tangent is not None


def needs_backward(*tensors: Tensor) -> bool:
    """Whether autograd, plain or of ``torch.func.grad``, may need a gradient of one of the tensors."""
    if not torch.is_grad_enabled():
        return False
    for x in tensors:  # noqa: SIM110 (half the time of any())
        if x.requires_grad:
            return True
    return False


def plain(tensors: Sequence[Tensor], addresses: bool) -> bool:
    """Whether certainly only values are needed, neither a gradient nor a tangent. False may be a false alarm.

    It runs at each call of a kernel, so it makes few function calls.

    Args:
        tensors: of the call.
        addresses: also require that no ``torch.func`` transform has wrapped the tensors, so that a kernel can use their
            memory.
    """
    if torch.is_grad_enabled():
        return False
    first = tensors[0]
    if COMPILER in sys.modules:  # compiled code may have opened a dual level that unpack_dual does not know of
        if carries_tangent(*tensors):
            return False
    elif forward_ad.unpack_dual(first).primal is not first:  # outside of all dual levels it is the tensor itself
        return False
    if not addresses:
        return True
    try:  # what a transform has wrapped has no address
        for x in tensors:
            if not x.data_ptr() and x.numel():
                return False
        # torch.func.grad leaves constants as they are, but wraps what a kernel would make for its output.
        return torch.empty(1).data_ptr() != 0
    except RuntimeError:
        return False


def lowered(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in autocast's type where autocast is on, as a linear layer would cast them.

    float64 stays, as with torch's own layers. torch has no autocast for meta tensors: if their types differ, which is
    accepted only under autocast, the smallest is taken.
    """
    kind = tensors[0].device.type
    if kind == "meta":
        types = {x.dtype for x in tensors if x.is_floating_point()}
        if len(types) < 2:
            return tensors
        dtype = min(types, key=lambda kind: kind.itemsize)
    elif torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    else:
        return tensors
    return tuple(x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in tensors)
