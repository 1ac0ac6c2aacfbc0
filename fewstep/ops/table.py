"""The table of kernels: each op has a plain oracle and, beside it, faster kernels that cannot do everything.

How a call chooses among them is in ``fewstep.ops.calls``.

The environment variable FEWSTEP_OPS, read once (see :func:`forcing`), forces a backend:

* ``reference``: the oracle, always.
* ``torch``: kernels made of torch's own ops, then the oracle.
* ``triton``: kernels in Triton, then the oracle. torch's fused kernels are left out, so that whatever Triton does not
  serve is plain; a call of an op that has a kernel in Triton and falls to the oracle is warned of, once a reason.
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
TAKERS: dict[tuple[Any, ...], tuple[list[Kernel], bool, bool]] = {}


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
    TAKERS.clear()


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
