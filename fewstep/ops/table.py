"""The table of kernels: each op has a plain oracle and faster kernels that cannot do everything.

How a call chooses among them is in ``fewstep.ops.calls``.

The environment variable FEWSTEP_OPS, read once (see :func:`forcing`), forces a backend:

* ``reference``: the oracle, always.
* ``torch``: kernels made of torch's own ops, then the oracle.
* ``triton``: kernels in Triton, then the oracle. torch's fused kernels are left out. If an op has a Triton kernel and a
  call falls back to the oracle, a warning says so, once per reason.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from torch import Tensor

from fewstep.errors import FewstepError, unknown
from fewstep.ops.example import Example
from fewstep.ops.inputs import carries_tangent, needs_backward
from fewstep.plugins.registry import registry

ENV = "FEWSTEP_OPS"
BACKENDS = ("reference", "torch", "triton")
CAPABILITIES = ("forward", "backward", "jvp")
ALL = frozenset(CAPABILITIES)


@dataclass(frozen=True)
class Kernel:
    """One implementation of one op.

    Attributes:
        name: unique within the op.
        op: the op that it implements, for example ``"attention"``.
        run: the function itself.
        provides: a subset of ``{"forward", "backward", "jvp"}``.
        priority: higher is tried first.
        backend: ``"reference"`` (plain torch, does everything), ``"torch"`` (fused ops of torch) or ``"triton"``.
        check: returns None for arguments that it takes, else the reason why not. It may depend on types, devices and
            shapes of tensors, and on other arguments: its answer is remembered for them.
        guard: the same for what depends on the gradients, tangents and ``torch.func`` transforms of a call. It is
            called for each call that needs more than values.
        direct: like ``run``, without autograd, for calls that need only values.
        example: makes the arguments of a small call, for ``fewstep ops``; one kernel of each op has it.
        validate: raises FewstepError for arguments that do not fit together. It may depend on what ``check`` may depend
            on, and is called before any check; one kernel of an op may have it.
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
        """None if this kernel can serve a call with ``args``, else the reason why not."""
        why = None if self.check is None else self.check(*args)
        return why or self.lacks(args, [a for a in args if isinstance(a, Tensor)])

    def lacks(self, args: tuple[Any, ...], tensors: list[Tensor]) -> str | None:
        """The reason why it cannot provide the derivatives that the call needs; None if it can."""
        if "jvp" not in self.provides and carries_tangent(*tensors):
            return "no forward-mode derivative, and an input carries a tangent"
        if "backward" not in self.provides and needs_backward(*tensors):
            return "no backward, and an input requires a gradient"
        return None if self.guard is None else self.guard(*args)


_TABLE: dict[str, dict[str, Kernel]] = {}
# By op and all that ``check`` may depend on (layouts by weak reference): the kernels that take such arguments, in
# order; whether the first of them serves every such call; and whether it has to know about ``torch.func`` transforms.
TAKERS: dict[tuple[Any, ...], tuple[list[Kernel], bool, bool]] = {}


def register(kernel: Kernel) -> Kernel:
    """Add a kernel to the table. Adding the same kernel again, for instance under a plugin's alias, changes nothing.

    Raises:
        FewstepError: if another kernel of the op has this name, or for an unknown backend or capability.
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
    """Forget the environment variable and the kernels' answers, so that both are read again."""
    forced.cache_clear()
    _in_order.cache_clear()
    TAKERS.clear()


@contextmanager
def forcing(backend: str) -> Iterator[None]:
    """Serve ops inside by this backend. The environment variable FEWSTEP_OPS is set meanwhile."""
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
    """The backend that the environment variable FEWSTEP_OPS asks for, or None.

    Raises:
        FewstepError: for an unknown backend.
    """
    backend = os.environ.get(ENV, "")
    if backend and backend not in BACKENDS:
        raise unknown(f"environment variable {ENV}", backend, BACKENDS)
    return backend or None


@lru_cache(maxsize=1)
def _load_plugins() -> None:
    """Add every kernel that a plugin registers. One that cannot be loaded is left out with a warning."""
    for name in registry().names("kernel"):
        try:
            register(registry().get("kernel", name).load())
        except FewstepError as error:
            warnings.warn(f"kernel {name!r} is left out: {error}", stacklevel=2)


def table() -> dict[str, dict[str, Kernel]]:
    """Every kernel by op and name, including those of plugins."""
    _load_plugins()
    return _TABLE


def kernels(op: str) -> list[Kernel]:
    """The kernels of an op in the order in which they are tried, without those that FEWSTEP_OPS leaves out.

    Raises:
        FewstepError: for an op without kernels.
    """
    return _in_order(op, forced())


@lru_cache(maxsize=256)
def _in_order(op: str, backend: str | None) -> list[Kernel]:
    if op not in table():
        raise unknown("op", op, _TABLE)
    usable = [k for k in _TABLE[op].values() if backend is None or k.backend in (backend, "reference")]
    return sorted(usable, key=lambda k: (k.backend == backend, k.priority), reverse=True)
