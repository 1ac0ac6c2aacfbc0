"""The context that every section is given, and its cases: one setup function per case, implementations by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.clock import Clock, Run
from benchmarks.gpu.optable import entries, refusal, within
from benchmarks.gpu.rows import EAGER, FAILED, OUT_OF_TIME, SKIPPED, WRONG, Book, Row
from benchmarks.gpu.times import Deadline
from benchmarks.gpu.work import Roof
from fewstep.ops.table import Kernel

OURS, PEER, PLAIN = "ours", "peer", "plain"  # plain: kernels of the op table that are not ours
BROKEN = "failed its comparison with the oracle"
UNCHECKED = "not held against the oracle in this run"
COMPARED = ("output", "gradient", "tangent")
TOLERANCE = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 1e-2}  # relative RMS
GROSS = 10.0  # multiple of the tolerance beyond which a kernel is not timed
Key = tuple[str, str, str]  # op, kernel, type


@dataclass
class Bench:
    """The context of one section.

    Args:
        section: its name in the rows.
        device: where it computes.
        dry: small shapes and few rounds; nothing counts as measured.
        book: where rows go.
        deadline: of this section.
        roof: the measured roofline of the machine.
        remarks: what the comparisons with the oracle found about kernels; a broken one is not timed.
    """

    section: str
    device: torch.device
    dry: bool
    book: Book
    deadline: Deadline
    roof: Roof = field(default_factory=Roof)
    remarks: Mapping[Key, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.clock = Clock(self.device, rounds=2 if self.dry else None)
        self.generator = torch.Generator(self.device).manual_seed(0)

    def sizes(self, full: Any, dry: Any) -> Any:
        """The first on a real run, the second on a dry one."""
        return dry if self.dry else full

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers, drawn in float32 and rounded."""
        return torch.randn(*shape, generator=self.generator, device=self.device).to(dtype)

    def half(self) -> torch.dtype:
        """The type that is timed: float16, or float32 in a dry run, where half precision would be emulated."""
        return torch.float32 if self.dry else torch.float16

    def refusal(self, kernel: Kernel, dtype: str, args: tuple[Any, ...]) -> str | None:
        """Why a kernel is not timed: it is broken, or cannot serve the call; None if it is timed."""
        broken = self.remark(kernel.op, kernel.name, dtype) == BROKEN
        return BROKEN if broken else refusal(kernel, args)

    def remark(self, op: str, kernel: str, dtype: str) -> str:
        """The note beside a time of one of our kernels."""
        return self.remarks.get((op, kernel, dtype), UNCHECKED)

    def skip(self, op: str, what: str, note: str = OUT_OF_TIME, **more: Any) -> None:
        """Add a row for what was skipped."""
        self.book.add(Row(self.section, op, what, status=SKIPPED, note=note, **more))

    def fail(self, op: str, what: str, error: BaseException, **more: Any) -> None:
        """Add a row for what failed."""
        self.book.add(Row(self.section, op, what, status=FAILED, note=brief(error), **more))

    def each(self, op: str, parts: Sequence[tuple[str, Callable[[], Any]]], least: float) -> None:
        """Run each part in turn. One that fails, or has less than ``least`` seconds left, gets a row that says so."""
        for name, part in parts:
            if self.deadline.left < least:
                self.skip(op, name)
                continue
            try:
                part()
            except Exception as error:  # one part must not take the others with it
                self.fail(op, name, error)


def brief(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200]


def name_of(dtype: torch.dtype) -> str:
    """The name of a type without "torch."."""
    return str(dtype).removeprefix("torch.")


def remarks(rows: list[Row]) -> dict[Key, str]:
    """What the comparisons with the oracles found about our kernels, by type; "" for those that passed.

    A kernel that failed, or whose error is far beyond the bound, is ``BROKEN``.
    """
    checks = [r for r in rows if r.role == OURS and r.what in COMPARED]
    found: dict[Key, str] = dict.fromkeys(((r.op, r.kernel, r.dtype) for r in checks), "")
    for r in checks:
        key = r.op, r.kernel, r.dtype
        if r.status == FAILED or (r.status == WRONG and not (r.error or 0.0) <= GROSS * TOLERANCE[r.dtype]):
            found[key] = BROKEN
        elif r.status == WRONG and found[key] != BROKEN:
            found[key] = f"beyond its bound against the oracle: {r.what} {r.error:.1e}"
    return found


@dataclass
class Runs:
    """The implementations of one case, in order: their builders and roles, and why others are missing."""

    builders: dict[str, Callable[[], Run]] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, role: str, build: Callable[[], Run], reason: str | None = None) -> None:
        """Register an implementation, or the reason why it is missing; ``build`` returns the call to time."""
        self.roles[name] = role
        if reason is None:
            self.builders[name] = build
        else:
            self.missing[name] = reason

    def table(self, bench: Bench, op: str, dtype: str, args: tuple[Any, ...], use: Callable[[Any], Run]) -> None:
        """Add the op table's kernels for a call; ``use`` turns a kernel's function into the call to time."""
        for kernel in entries(op):
            role, reason = OURS if kernel.backend == "triton" else PLAIN, bench.refusal(kernel, dtype, args)
            self.add(kernel.name, role, partial(use, within(kernel)), reason)


@dataclass(frozen=True)
class Case:
    """One measured operation at one shape.

    Args:
        op, what, shape, dtype: as in a row.
        setup: makes the inputs and the implementations.
        flops, moved: operations and bytes moved by one call.
        against: by name of an implementation, the target that its ratio to ours counts for.
        rate: the target that our own row counts for.
        mode: how calls are made that count for these targets.
        recordable: whether its calls may also be timed as CUDA graphs, which is done where they are host-bound.
    """

    op: str
    what: str
    shape: str
    dtype: str
    setup: Callable[[], Runs]
    flops: float = 0.0
    moved: float = 0.0
    against: Mapping[str, str] = field(default_factory=dict)
    rate: str = ""
    mode: str = EAGER
    recordable: bool = True
