"""The table of kernels: each op has a plain oracle and, beside it, faster kernels that cannot do everything.

``dispatch`` takes the first kernel, by priority, that can do what the call needs; a rejected one says why.

The environment variable FEWSTEP_OPS forces a backend:

* ``reference``: the oracle, always.
* ``torch``: kernels made of torch's own ops, then the oracle.
* ``triton``: kernels in Triton, then the oracle. torch's fused kernels are left out, so that whatever Triton does not
  serve is plain; a call of an op that has a kernel in Triton and falls to the oracle is warned of, once a reason.

It is read at each call; torch.compile reads it when it traces.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from fewstep.errors import FewstepError, unknown
from fewstep.ops.plugins import load_kernels
from fewstep.ops.tangents import carries_tangent, needs_backward

ENV = "FEWSTEP_OPS"
BACKENDS = ("reference", "torch", "triton")
CAPABILITIES = ("forward", "backward", "jvp")


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
        limited: whether something is missing in ``provides``.
    """

    name: str
    op: str
    run: Callable[..., Any] = field(repr=False)
    provides: frozenset[str]
    priority: int = 0
    backend: str = "torch"
    check: Callable[..., str | None] = field(default=_anything, repr=False)
    limited: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "limited", not self.provides >= {"backward", "jvp"})

    def supports(self, *args: Any) -> str | None:
        """None when this kernel can serve a call with ``args``; else the reason why not."""
        return (self._lacks(args) if self.limited else None) or self.check(*args)

    def _lacks(self, args: tuple[Any, ...]) -> str | None:
        # isinstance with Tensor itself asks its metaclass, which is slow.
        tensors: list[Any] = [a for a in args if isinstance(a, torch._C.TensorBase)]
        if "jvp" not in self.provides and carries_tangent(*tensors):
            return "no forward-mode derivative, and an input carries a tangent"
        if "backward" not in self.provides and needs_backward(*tensors):
            return "no backward, and an input requires a gradient"
        return None


_TABLE: dict[str, dict[str, Kernel]] = {}
_ORDER: dict[tuple[str, str | None], list[Kernel]] = {}  # what kernels() has sorted before


def register(kernel: Kernel) -> Kernel:
    """Add a kernel to the table. Raises FewstepError when its name is taken or its words are unknown."""
    kernels = _TABLE.setdefault(kernel.op, {})
    if kernel.name in kernels:
        raise FewstepError(f"op {kernel.op!r}: two kernels are called {kernel.name!r}")
    if kernel.backend not in BACKENDS:
        raise unknown(f"backend of kernel {kernel.name!r}", kernel.backend, BACKENDS)
    if odd := kernel.provides - set(CAPABILITIES):
        raise unknown(f"capability of kernel {kernel.name!r}", min(odd), CAPABILITIES)
    kernels[kernel.name] = kernel
    _ORDER.clear()
    return kernel


def forced() -> str | None:
    """The backend asked for in the environment variable FEWSTEP_OPS, or None. Raises FewstepError for others."""
    backend = os.environ.get(ENV, "")
    if backend and backend not in BACKENDS:
        raise unknown(f"environment variable {ENV}", backend, BACKENDS)
    return backend or None


def table() -> dict[str, dict[str, Kernel]]:
    """Every kernel, those of plugins included, by op and by name."""
    load_kernels()
    return _TABLE


def kernels(op: str) -> list[Kernel]:
    """The kernels of an op in the order in which they are tried, those that FEWSTEP_OPS leaves out excluded.

    Raises FewstepError for an op without kernels.
    """
    backend = forced()
    if torch.compiler.is_dynamo_compiling():
        _sorted_before(backend)
    if (op, backend) not in _ORDER:
        _sort(backend)
    found = _ORDER.get((op, backend))
    if found is None:
        raise unknown("op", op, _TABLE)
    return found


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _sorted_before(backend: str | None) -> None:
    """Sort while torch.compile traces, without being traced, and all ops at once: it looks at ``_ORDER`` only once."""
    if not all((op, backend) in _ORDER for op in table()):
        _sort(backend)


def _sort(backend: str | None) -> None:
    for op, known in table().items():
        found: Iterable[Kernel] = known.values()
        if backend is not None:
            found = (k for k in found if k.backend in (backend, "reference"))
        _ORDER[op, backend] = sorted(found, key=lambda k: (k.backend == backend, k.priority), reverse=True)


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
            if reasons and kernel.backend == "reference":
                _fell(op, reasons[0])
            return kernel
        reasons.append(f"{kernel.name}: {reason}")
    raise FewstepError(f"op {op!r}: no kernel can serve this call ({'; '.join(reasons)})")


def _fell(op: str, reason: str) -> None:
    """Says that the oracle serves where FEWSTEP_OPS asks for Triton."""
    if not torch.compiler.is_dynamo_compiling() and forced() == "triton":
        _warn_of(f"{ENV}=triton: op {op!r} is served by its plain oracle ({reason})")


@lru_cache(maxsize=256)
def _warn_of(text: str) -> None:
    warnings.warn(text, stacklevel=4)


def explain(op: str, *args: Any) -> dict[str, str | None]:
    """For each kernel of an op, in order, None when it takes the call or its reason for not."""
    return {k.name: k.supports(*args) for k in kernels(op)}
