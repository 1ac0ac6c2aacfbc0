"""Is a forward-mode tangent riding on a tensor?

Kernels without forward AD must know before they run: some would raise, others would drop the tangent silently.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_unwrapped, maybe_get_level, peek_interpreter_stack
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.autograd import forward_ad


def in_transform() -> bool:
    """True inside any ``torch.func`` transform (grad, jvp, vmap and their compositions)."""
    return peek_interpreter_stack() is not None


def _has_dual(x: Tensor) -> bool:
    """A tangent at the level that is on top of the stack now."""
    return forward_ad.unpack_dual(x, level=0).tangent is not None


def _carries(x: Tensor) -> bool:
    top = peek_interpreter_stack()
    if top is None:
        return forward_ad._current_level >= 0 and _has_dual(x)
    if top.key() == TransformType.Jvp and _has_dual(x):
        return True
    # A tangent may sit under the wrappers of inner transforms (jvp of grad, jvp of vmap): look at each level.
    inner = get_unwrapped(x) if maybe_get_level(x) == top.level() else x
    with temporarily_pop_interpreter_stack():
        return _carries(inner)


def carries_tangent(*tensors: Tensor) -> bool:
    """True when a tensor carries a forward-mode tangent, at any nesting of transforms.

    Args:
        tensors: tensors as seen by the code that is being differentiated.

    Returns:
        Whether ``torch.func.jvp``, ``jacfwd`` or ``torch.autograd.forward_ad`` differentiates through one of them.
    """
    if forward_ad._current_level < 0 and not in_transform():
        return False
    return any(_carries(x) for x in tensors)


def needs_backward(*tensors: Tensor) -> bool:
    """True when autograd, plain or of ``torch.func.grad``, will want a gradient of one of the tensors."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
