"""The table of kernels: each op has a plain oracle and, beside it, faster kernels that cannot do everything.

``call`` runs the first kernel, by priority, that can do what the call needs; a rejected one says why.

The environment variable FEWSTEP_OPS, read at each call, forces a backend:

* ``reference``: the oracle, always.
* ``torch``: kernels made of torch's own ops, then the oracle.
* ``triton``: kernels in Triton, then the oracle. torch's fused kernels are left out, so that whatever Triton does not
  serve is plain; a call of an op that has a kernel in Triton and falls to the oracle is warned of, once a reason.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import FewstepError, unknown
from fewstep.ops.example import Example
from fewstep.ops.inputs import carries_tangent, needs_backward
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
        check: returns None for arguments that it takes, else the reason why not.
        example: makes the arguments of a small call, for ``fewstep ops``; one kernel of each op has it.
    """

    name: str
    op: str
    run: Callable[..., Any] = field(repr=False)
    provides: frozenset[str]
    priority: int = 0
    backend: str = "torch"
    check: Callable[..., str | None] | None = field(default=None, repr=False)
    example: Example | None = field(default=None, repr=False)

    def supports(self, *args: Any) -> str | None:
        """None when this kernel can serve a call with ``args``; else the reason why not."""
        if not self.provides >= ALL:
            tensors = [a for a in args if isinstance(a, Tensor)]
            if "jvp" not in self.provides and carries_tangent(*tensors):
                return "no forward-mode derivative, and an input carries a tangent"
            if "backward" not in self.provides and needs_backward(*tensors):
                return "no backward, and an input requires a gradient"
        return None if self.check is None else self.check(*args)


_TABLE: dict[str, dict[str, Kernel]] = {}


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
    _in_order.cache_clear()
    return kernel


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
    reasons: list[str] = []
    for kernel in kernels(op):
        reason = kernel.supports(*args)
        if reason is None:
            if reasons and kernel.backend == "reference" and forced() == "triton":
                _warn_of(f"{ENV}=triton: op {op!r} is served by its plain oracle ({reasons[0]})")
            return kernel
        reasons.append(f"{kernel.name}: {reason}")
    raise FewstepError(f"op {op!r}: no kernel can serve this call ({'; '.join(reasons)})")


def call(op: str, *args: Any) -> Any:
    """The op's result, by the kernel that :func:`dispatch` chooses.

    Inside torch.compile this is a graph break: kernels read environment variables and Python lists of lengths, and
    differentiate by ``autograd.Function``. Value, gradient and tangent are those of the eager call.
    """
    # Once torch.compile has met an op, calls from frames that it does not compile must be kept from it too.
    if torch.compiler.is_compiling() or EAGER in sys.modules:
        from fewstep.ops.eager import run_eagerly

        return run_eagerly(run, op, *args)
    return run(op, *args)


def run(op: str, *args: Any) -> Any:
    """:func:`call`, outside of torch.compile."""
    return dispatch(op, *args).run(*args)


@lru_cache(maxsize=256)
def _warn_of(text: str) -> None:
    warnings.warn(text, stacklevel=4)


def explain(op: str, *args: Any) -> dict[str, str | None]:
    """For each kernel of an op, in order, None when it takes the call or its reason for not."""
    return {k.name: k.supports(*args) for k in kernels(op)}
