"""The op table for benchmarks: every kernel of an op, each with its own backend forced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fewstep.ops.table import Kernel, forcing, table


def within(kernel: Kernel) -> Callable[..., Any]:
    """The kernel's function with its own backend forced."""

    def run(*args: Any) -> Any:
        # Forced at call time, so that other ops which the kernel calls use its backend too.
        with forcing(kernel.backend):
            return kernel.run(*args)

    return run


def refusal(kernel: Kernel, args: tuple[Any, ...]) -> str | None:
    """Why a kernel cannot serve a call; None where it can."""
    with forcing(kernel.backend):
        return kernel.supports(*args)


def entries(op: str) -> list[Kernel]:
    """Every kernel of an op, those of highest priority first, whatever FEWSTEP_OPS says."""
    return sorted(table().get(op, {}).values(), key=lambda k: -k.priority)
