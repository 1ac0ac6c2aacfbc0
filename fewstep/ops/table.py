"""The table of kernels: each op has a plain oracle and, beside it, faster kernels that cannot do everything.

``call`` runs the first kernel, by priority, that can do what the call needs; a rejected one says why. Which kernels
take arguments of these types, devices and shapes is asked once and remembered, so that a call costs one look-up.

The environment variable FEWSTEP_OPS, read once (see :func:`forcing`), forces a backend:

* ``reference``: the oracle, always.
* ``torch``: kernels made of torch's own ops, then the oracle.
* ``triton``: kernels in Triton, then the oracle. torch's fused kernels are left out, so that whatever Triton does not
  serve is plain; a call of an op that has a kernel in Triton and falls to the oracle is warned of, once a reason.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.nn import Parameter

from fewstep.core.layout import Packed
from fewstep.errors import FewstepError, unknown
from fewstep.ops.example import Example
from fewstep.ops.inputs import COMPILER, carries_tangent, needs_backward, plain
from fewstep.plugins.registry import registry

ENV = "FEWSTEP_OPS"
BACKENDS = ("reference", "torch", "triton")
CAPABILITIES = ("forward", "backward", "jvp")
ALL = frozenset(CAPABILITIES)
EAGER = "fewstep.ops.eager"


@dataclass(frozen=True)
class Kernel:
    """One implementation of one op.

    Attributes:
        name: unique within the op.
        op: what it computes, for example ``"attention"``.
        run: the function itself.
        provides: a subset of ``{"forward", "backward", "jvp"}``.
        priority: higher is tried first.
        backend: ``"reference"`` (plain torch, does everything), ``"torch"`` (fused ops of torch) or ``"triton"``.
        check: returns None for arguments that it takes, else the reason why not. It may look at types, devices and
            shapes of tensors, and at other arguments: its answer is remembered for them.
        guard: the same for what depends on the gradients, tangents and ``torch.func`` transforms of a call. Asked at
            each call that needs more than values.
        direct: as ``run``, for calls that need nothing but values: without autograd.
        example: makes the arguments of a small call, for ``fewstep ops``; one kernel of each op has it.
        validate: raises FewstepError for arguments that do not fit together. Looks at what ``check`` may look at, and
            is asked before any kernel; one kernel of an op may have it.
    """

    name: str
    op: str
    run: Callable[..., Any] = field(repr=False)
    provides: frozenset[str]
    priority: int = 0
    backend: str = "torch"
    check: Callable[..., str | None] | None = field(default=None, repr=False)
    guard: Callable[..., str | None] | None = field(default=None, repr=False)
    direct: Callable[..., Any] | None = field(default=None, repr=False)
    example: Example | None = field(default=None, repr=False)
    validate: Callable[..., None] | None = field(default=None, repr=False)

    def supports(self, *args: Any) -> str | None:
        """None when this kernel can serve a call with ``args``; else the reason why not."""
        why = None if self.check is None else self.check(*args)
        return why or self.lacks(args, [a for a in args if isinstance(a, Tensor)])

    def lacks(self, args: tuple[Any, ...], tensors: list[Tensor]) -> str | None:
        """The reason why it cannot give the derivatives that the call needs; None where it can."""
        if "jvp" not in self.provides and carries_tangent(*tensors):
            return "no forward-mode derivative, and an input carries a tangent"
        if "backward" not in self.provides and needs_backward(*tensors):
            return "no backward, and an input requires a gradient"
        return None if self.guard is None else self.guard(*args)


_TABLE: dict[str, dict[str, Kernel]] = {}
# By op and all that ``check`` may look at (layouts by weak reference): the kernels that take such arguments, in order;
# whether the first one serves whatever a call needs; and whether it is particular about ``torch.func`` transforms.
_TAKERS: dict[tuple[Any, ...], tuple[list[Kernel], bool, bool]] = {}
MOST = 4096  # keys: a long run on ragged batches meets ever new ones


def register(kernel: Kernel) -> Kernel:
    """Add a kernel to the table; one that is there already, say by an alias of its plugin's name, stays as it is.

    Raises:
        FewstepError: another kernel of the op has this name, or a word is unknown.
    """
    if kernel.backend not in BACKENDS:
        raise unknown(f"backend of kernel {kernel.name!r}", kernel.backend, BACKENDS)
    if odd := kernel.provides - ALL:
        raise unknown(f"capability of kernel {kernel.name!r}", min(odd), CAPABILITIES)
    if _TABLE.setdefault(kernel.op, {}).setdefault(kernel.name, kernel) is not kernel:
        raise FewstepError(f"op {kernel.op!r}: two kernels are called {kernel.name!r}")
    forget()
    return kernel


def forget() -> None:
    """Read the environment anew and ask every kernel again."""
    forced.cache_clear()
    _in_order.cache_clear()
    _TAKERS.clear()


@contextmanager
def forcing(backend: str) -> Iterator[None]:
    """Ops inside are served by this backend: as by the environment variable FEWSTEP_OPS, which is set meanwhile."""
    if forced() == backend:
        yield
        return
    before = os.environ.get(ENV)
    os.environ[ENV] = backend
    forget()
    try:
        yield
    finally:
        if before is None:
            del os.environ[ENV]
        else:
            os.environ[ENV] = before
        forget()


@lru_cache(maxsize=1)
def forced() -> str | None:
    """The backend asked for in the environment variable FEWSTEP_OPS, or None. Raises FewstepError for others."""
    backend = os.environ.get(ENV, "")
    if backend and backend not in BACKENDS:
        raise unknown(f"environment variable {ENV}", backend, BACKENDS)
    return backend or None


@lru_cache(maxsize=1)
def _load_plugins() -> None:
    """Add every kernel that a plugin registers; one that cannot be loaded is a warning, the others serve."""
    for name in registry().names("kernel"):
        try:
            register(registry().get("kernel", name).load())
        except FewstepError as error:
            warnings.warn(f"kernel {name!r} is left out: {error}", stacklevel=2)


def table() -> dict[str, dict[str, Kernel]]:
    """Every kernel, those of plugins included, by op and by name."""
    _load_plugins()
    return _TABLE


def kernels(op: str) -> list[Kernel]:
    """The kernels of an op in the order in which they are tried, those that FEWSTEP_OPS leaves out excluded.

    Raises FewstepError for an op without kernels.
    """
    return _in_order(op, forced())


@lru_cache(maxsize=256)
def _in_order(op: str, backend: str | None) -> list[Kernel]:
    if op not in table():
        raise unknown("op", op, _TABLE)
    found = [k for k in _TABLE[op].values() if backend is None or k.backend in (backend, "reference")]
    return sorted(found, key=lambda k: (k.backend == backend, k.priority), reverse=True)


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
    if COMPILER in sys.modules and (torch.compiler.is_compiling() or EAGER in sys.modules):
        from fewstep.ops.eager import run_eagerly

        return run_eagerly(run, op, *args)
    # From here on written for few function calls: each op of each block of a network comes by.
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
        takers, always, inside = _TAKERS[key]
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
    if len(_TAKERS) >= MOST:
        _TAKERS.clear()
    with suppress(TypeError):
        _TAKERS[key] = found
    return found


def run(op: str, *args: Any) -> Any:
    """:func:`call`, outside of torch.compile."""
    return dispatch(op, *args).run(*args)


@lru_cache(maxsize=256)
def _warn_of(text: str) -> None:
    warnings.warn(text, stacklevel=4)


def explain(op: str, *args: Any) -> dict[str, str | None]:
    """For each kernel of an op, in order, None when it takes the call or its reason for not."""
    return {k.name: k.supports(*args) for k in kernels(op)}
