"""The table of kernels: each op has a plain oracle and, beside it, faster kernels that cannot do everything.

``dispatch`` takes the first kernel, by priority, that can do what the call needs; a rejected one says why.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fewstep.errors import FewstepError, unknown
from fewstep.ops.plugins import load_kernels
from fewstep.ops.tangents import carries_tangent, needs_backward

ENV = "FEWSTEP_OPS"
BACKENDS = ("reference", "torch", "triton")


def _anything(*_: Any) -> str | None:
    return None


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
        check: None for arguments it takes, else the reason why not; called by :meth:`supports`.
    """

    name: str
    op: str
    run: Callable[..., Any] = field(repr=False)
    provides: frozenset[str]
    priority: int = 0
    backend: str = "torch"
    check: Callable[..., str | None] = field(default=_anything, repr=False)

    def supports(self, *args: Any) -> str | None:
        """None when this kernel can serve a call with ``args``; else the reason why not."""
        tensors = [a for a in args if isinstance(a, Tensor)]
        if "jvp" not in self.provides and carries_tangent(*tensors):
            return "no forward-mode derivative, and an input carries a tangent"
        if "backward" not in self.provides and needs_backward(*tensors):
            return "no backward, and an input requires a gradient"
        return self.check(*args)


_TABLE: dict[str, dict[str, Kernel]] = {}


def register(kernel: Kernel) -> Kernel:
    """Add a kernel to the table. Raises FewstepError when its name is taken or its words are unknown."""
    kernels = _TABLE.setdefault(kernel.op, {})
    if kernel.name in kernels:
        raise FewstepError(f"op {kernel.op!r}: two kernels are called {kernel.name!r}")
    if kernel.backend not in BACKENDS:
        raise unknown(f"backend of kernel {kernel.name!r}", kernel.backend, BACKENDS)
    if odd := kernel.provides - {"forward", "backward", "jvp"}:
        raise unknown(f"capability of kernel {kernel.name!r}", min(odd), ("forward", "backward", "jvp"))
    kernels[kernel.name] = kernel
    return kernel


def forced() -> str | None:
    """The backend asked for in the environment variable FEWSTEP_OPS, or None. Raises FewstepError for others."""
    backend = os.environ.get(ENV, "")
    if backend and backend not in BACKENDS:
        raise unknown(f"environment variable {ENV}", backend, BACKENDS)
    return backend or None


def kernels(op: str) -> list[Kernel]:
    """The kernels of an op in the order in which they are tried.

    FEWSTEP_OPS=reference leaves only the oracle; another backend is tried before the oracle and excludes the rest.
    Raises FewstepError for an op without kernels.
    """
    load_kernels()
    if op not in _TABLE:
        raise unknown("op", op, _TABLE)
    backend = forced()
    found: Iterable[Kernel] = _TABLE[op].values()
    if backend is not None:
        found = (k for k in found if k.backend in (backend, "reference"))
    return sorted(found, key=lambda k: (k.backend == backend, k.priority), reverse=True)


def dispatch(op: str, *args: Any) -> Kernel:
    """The kernel to use for a call.

    Args:
        op: name of the op.
        args: the call's arguments; tensors are asked whether they carry tangents or need gradients.

    Raises:
        FewstepError: no kernel takes the call; the text has every kernel's reason.
    """
    reasons = []
    for kernel in kernels(op):
        reason = kernel.supports(*args)
        if reason is None:
            return kernel
        reasons.append(f"{kernel.name}: {reason}")
    raise FewstepError(f"op {op!r}: no kernel can serve this call ({'; '.join(reasons)})")


def explain(op: str, *args: Any) -> dict[str, str | None]:
    """For each kernel of an op, in order, None when it takes the call or its reason for not."""
    return {k.name: k.supports(*args) for k in kernels(op)}
