"""Is a forward-mode tangent riding on a tensor?

Kernels without forward AD must know before they run: some would raise, others would drop the tangent silently.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import (
    TransformType,
    get_interpreter_stack,
    get_unwrapped,
    maybe_get_level,
    peek_interpreter_stack,
)
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.autograd import forward_ad


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def transforms() -> tuple[str, ...]:
    """The ``torch.func`` transforms that we are in, outermost first: of "jvp", "grad", "vmap", "functionalize".

    What torch.compile traces, it traces with the transforms entered, so that this is a constant there.
    """
    return tuple(level.key().name.lower() for level in get_interpreter_stack() or ())


def in_transform() -> bool:
    """True inside any ``torch.func`` transform (grad, jvp, vmap and their compositions)."""
    if torch.compiler.is_dynamo_compiling():
        return len(transforms()) > 0
    return peek_interpreter_stack() is not None


def has_dual(x: Tensor) -> bool:
    """A tangent at the level that is on top of the stack now."""
    return forward_ad.unpack_dual(x, level=0).tangent is not None


def _carries(x: Tensor) -> bool:
    top = peek_interpreter_stack()
    if top is None:
        return forward_ad._current_level >= 0 and has_dual(x)
    if top.key() == TransformType.Jvp and has_dual(x):
        return True
    # A tangent may sit under the wrappers of inner transforms (jvp of grad, jvp of vmap): look at each level.
    inner = get_unwrapped(x) if maybe_get_level(x) == top.level() else x
    with temporarily_pop_interpreter_stack():
        return _carries(inner)


def _carries_traced(tensors: tuple[Tensor, ...]) -> bool:
    """The same where torch.compile traces: exact within one jvp, and yes wherever another one lies further out."""
    levels = transforms()
    if "jvp" in levels[:-1]:
        return True
    return levels[-1:] == ("jvp",) and any([has_dual(x) for x in tensors])  # noqa: C419 (torch.compile traces a list)


def carries_tangent(*tensors: Tensor) -> bool:
    """True when a tensor carries a forward-mode tangent, at any nesting of transforms.

    Args:
        tensors: tensors as seen by the code that is being differentiated.

    Returns:
        Whether ``torch.func.jvp``, ``jacfwd`` or ``torch.autograd.forward_ad`` differentiates through one of them.
    """
    if torch.compiler.is_dynamo_compiling():
        return _carries_traced(tensors)
    if forward_ad._current_level < 0 and peek_interpreter_stack() is None:
        return False
    return any(_carries(x) for x in tensors)


def needs_backward(*tensors: Tensor) -> bool:
    """True when autograd, plain or of ``torch.func.grad``, will want a gradient of one of the tensors."""
    if not torch.is_grad_enabled():
        return False
    for x in tensors:  # noqa: SIM110 (half the time of any())
        if x.requires_grad:
            return True
    return False
