"""The choice of a kernel for a call.

``call`` runs the first kernel, by priority, that can do what the call needs; a rejected one says why. Which kernels
take arguments of given types, devices and shapes is determined once and remembered, so that a call costs one look-up.
"""

from __future__ import annotations

import sys
import warnings
from contextlib import suppress
from contextvars import ContextVar
from functools import lru_cache
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.nn import Parameter

from fewstep.core.layout import Packed
from fewstep.errors import FewstepError
from fewstep.ops.inputs import COMPILER, plain
from fewstep.ops.table import ALL, ENV, TAKERS, Kernel, forced, kernels

EAGER = "fewstep.ops.eager"
_UNTRACED: ContextVar[bool] = ContextVar("untraced", default=False)
MOST = 4096  # kinds of arguments remembered at once: a long run on ragged batches keeps meeting new ones


def dispatch(op: str, *args: Any) -> Kernel:
    """The kernel to use for a call.

    Args:
        op: name of the op.
        args: the call's arguments. The choice also depends on whether tensors carry tangents or need gradients.

    Raises:
        FewstepError: if no kernel takes the call, with every kernel's reason.
    """
    tensors: list[Tensor] = []
    _collect(args, [], tensors)
    return _serving(op, args, _ask(op, args), tensors)


def _serving(op: str, args: tuple[Any, ...], takers: list[Kernel], tensors: list[Tensor]) -> Kernel:
    """The first kernel that provides the derivatives that the call needs."""
    refused = []
    for kernel in takers:
        if why := kernel.lacks(args, tensors):
            refused.append(f"{kernel.name}: {why}")
            continue
        _tell(op, kernel, refused)
        return kernel
    raise _unserved(op, args)


def _ask(op: str, args: tuple[Any, ...]) -> list[Kernel]:
    """The kernels whose checks accept these arguments, in order, after validation."""
    candidates = kernels(op)
    for kernel in candidates:
        if kernel.validate is not None:
            kernel.validate(*args)
    takers, refused = [], []
    for kernel in candidates:
        why = None if kernel.check is None else kernel.check(*args)
        if why:
            refused.append(f"{kernel.name}: {why}")
        else:
            takers.append(kernel)
    if not takers:
        raise _unserved(op, args)
    _tell(op, takers[0], refused)
    return takers


def _collect(value: Any, facts: list[Any], tensors: list[Tensor]) -> None:
    """Add what a kernel's check may depend on to ``facts``, and tensors, also those in tuples, to ``tensors``."""
    if isinstance(value, Tensor):
        facts += value.dtype, value.device, value.shape
        tensors += (value,)
    elif isinstance(value, tuple):
        facts += tuple, len(value)
        for part in value:
            _collect(part, facts, tensors)
    else:
        facts += (ref(value) if isinstance(value, Packed) else value,)


def _unserved(op: str, args: tuple[Any, ...]) -> FewstepError:
    reasons = "; ".join(f"{name}: {why}" for name, why in explain(op, *args).items())
    return FewstepError(f"op {op!r}: no kernel can serve this call ({reasons})")


def _tell(op: str, chosen: Kernel, refused: list[str]) -> None:
    """Warn if an oracle serves although Triton was asked for."""
    if refused and chosen.backend == "reference" and forced() == "triton":
        _warn_of(f"{ENV}=triton: op {op!r} is served by its plain oracle ({refused[0]})")


def call(op: str, *args: Any) -> Any:
    """The op's result, by the kernel that :func:`dispatch` chooses.

    Inside torch.compile this is a graph break: kernels read Python lists of lengths, and differentiate by
    ``autograd.Function``. Value, gradient and tangent are those of the eager call.

    Raises:
        FewstepError: as :func:`dispatch` does.
    """
    # Once torch.compile has met an op, calls from frames that it does not compile must be hidden from it too.
    if COMPILER in sys.modules and (torch.compiler.is_compiling() or (EAGER in sys.modules and not _UNTRACED.get())):
        from fewstep.ops.eager import run_eagerly

        return run_eagerly(_untraced, op, *args)
    # From here on with few function calls, hence `+=` for `append`: every op of every block of a network passes here.
    facts: list[Any] = [op]
    tensors: list[Tensor] = []
    for value in args:
        kind = type(value)
        if kind is Tensor or kind is Parameter:
            facts += value.dtype, value.device, value.shape
            tensors += (value,)
        elif value is None or kind is float:
            facts += (value,)
        else:
            _collect(value, facts, tensors)
    key = tuple(facts)
    try:
        takers, always, inside = TAKERS[key]
    except (KeyError, TypeError):  # TypeError: an argument without a hash
        takers, always, inside = _remember(key, _ask(op, args))
    first = takers[0]
    if always:
        return first.run(*args)
    if tensors and plain(tensors, inside):
        return first.run(*args) if first.direct is None else first.direct(*args)
    return _serving(op, args, takers, tensors).run(*args)


def _remember(key: tuple[Any, ...], takers: list[Kernel]) -> tuple[list[Kernel], bool, bool]:
    first = takers[0]
    inside = first.guard is not None or first.direct is not None
    entry = takers, first.provides >= ALL and not inside, inside
    if len(TAKERS) >= MOST:
        TAKERS.clear()
    with suppress(TypeError):
        TAKERS[key] = entry
    return entry


def _untraced(op: str, *args: Any) -> Any:
    """:func:`call`, marked as hidden from torch.compile."""
    token = _UNTRACED.set(True)
    try:
        return call(op, *args)
    finally:
        _UNTRACED.reset(token)


@lru_cache(maxsize=256)
def _warn_of(text: str) -> None:
    warnings.warn(text, stacklevel=4)


def explain(op: str, *args: Any) -> dict[str, str | None]:
    """For each kernel of an op, in order: None if it takes the call, else the reason why it does not."""
    return {k.name: k.supports(*args) for k in kernels(op)}
