"""The choice of a kernel for a call.

``call`` runs the first kernel, by priority, that can do what the call needs; a rejected one says why. Which kernels
take arguments of these types, devices and shapes is asked once and remembered, so that a call costs one look-up.
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
MOST = 4096  # arguments that are remembered: a long run on ragged batches meets ever new ones


def dispatch(op: str, *args: Any) -> Kernel:
    """The kernel to use for a call.

    Args:
        op: name of the op.
        args: the call's arguments; tensors are asked whether they carry tangents or need gradients.

    Raises:
        FewstepError: no kernel takes the call; the text has every kernel's reason.
    """
    tensors: list[Tensor] = []
    _collect(args, [], tensors)
    return _serving(op, args, _ask(op, args), tensors)


def _serving(op: str, args: tuple[Any, ...], takers: list[Kernel], tensors: list[Tensor]) -> Kernel:
    """The first kernel that gives the derivatives which the call needs."""
    refused = []
    for kernel in takers:
        if why := kernel.lacks(args, tensors):
            refused.append(f"{kernel.name}: {why}")
            continue
        _tell(op, kernel, refused)
        return kernel
    raise _unserved(op, args)


def _ask(op: str, args: tuple[Any, ...]) -> list[Kernel]:
    """The kernels that take such arguments, in order: what validation and checks say, and what is remembered."""
    asked = kernels(op)
    for kernel in asked:
        if kernel.validate is not None:
            kernel.validate(*args)
    takers, refused = [], []
    for kernel in asked:
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
    """Add what a kernel's check may look at to ``facts``, and tensors, those in tuples included, to ``tensors``."""
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
    """Warn of an oracle that serves where Triton was asked for."""
    if refused and chosen.backend == "reference" and forced() == "triton":
        _warn_of(f"{ENV}=triton: op {op!r} is served by its plain oracle ({refused[0]})")


def call(op: str, *args: Any) -> Any:
    """The op's result, by the kernel that :func:`dispatch` chooses.

    Inside torch.compile this is a graph break: kernels read Python lists of lengths, and differentiate by
    ``autograd.Function``. Value, gradient and tangent are those of the eager call.
    """
    # Once torch.compile has met an op, calls from frames that it does not compile must be kept from it too.
    if COMPILER in sys.modules and (torch.compiler.is_compiling() or (EAGER in sys.modules and not _UNTRACED.get())):
        from fewstep.ops.eager import run_eagerly

        return run_eagerly(_untraced, op, *args)
    # From here on written for few function calls: each op of each block of a network comes by. So `+=`, not `append`.
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
    found = takers, first.provides >= ALL and not inside, inside
    if len(TAKERS) >= MOST:
        TAKERS.clear()
    with suppress(TypeError):
        TAKERS[key] = found
    return found


def _untraced(op: str, *args: Any) -> Any:
    """:func:`call`, where torch.compile does not look."""
    token = _UNTRACED.set(True)
    try:
        return call(op, *args)
    finally:
        _UNTRACED.reset(token)


@lru_cache(maxsize=256)
def _warn_of(text: str) -> None:
    warnings.warn(text, stacklevel=4)


def explain(op: str, *args: Any) -> dict[str, str | None]:
    """For each kernel of an op, in order, None when it takes the call or its reason for not."""
    return {k.name: k.supports(*args) for k in kernels(op)}
