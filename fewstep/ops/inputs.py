"""What the tensors of a call ask of a kernel: a forward-mode tangent, a gradient, autocast's type."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import debug_unwrap


def in_transform(*tensors: Tensor) -> bool:
    """True when a ``torch.func`` transform (grad, jvp, vmap or a composition) has wrapped one of the tensors."""
    return any(debug_unwrap(x, recurse=False) is not x for x in tensors)


def carries_tangent(*tensors: Tensor) -> bool:
    """True when forward-mode differentiation goes through one of the tensors, or may do so.

    A kernel without forward-mode support must not be chosen then. Inside nested transforms torch shows only the
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
    """True when autograd, plain or of ``torch.func.grad``, will want a gradient of one of the tensors."""
    if not torch.is_grad_enabled():
        return False
    for x in tensors:  # noqa: SIM110 (half the time of any())
        if x.requires_grad:
            return True
    return False


def lowered(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in autocast's type where autocast is on, as a linear layer would cast them.

    float64 stays, as with torch's own layers.
    """
    kind = tensors[0].device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):  # meta tensors have no autocast to ask about
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in tensors)
