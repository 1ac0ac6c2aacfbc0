"""Every kernel of the op table against its oracle in float64: outputs, gradients, tangents, determinism, host syncs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.bench import OURS, PLAIN, TOLERANCE, Bench, name_of
from benchmarks.gpu.measure import LEAST, relative_rms, tensors
from benchmarks.gpu.optable import entries, refusal, within
from benchmarks.gpu.rows import FAILED, RIGHT, SKIPPED, WRONG, Row
from benchmarks.gpu.sections.trials import TRIALS, Trial
from fewstep.ops.table import Kernel

PLAIN_ERRORS = 2.0  # allowed multiple of the oracle's own error in a type, where that is large (gradients that cancel)
EVERYTHING = frozenset({"forward", "backward", "jvp"})
Found = dict[str, list[Tensor]]


def run(bench: Bench, ops: Sequence[str], dtypes: Sequence[str]) -> None:
    """Compare each kernel of these ops, in these types, with its oracle."""
    for dtype in (getattr(torch, name) for name in dtypes):
        for op in ops:
            kernels = [k for k in entries(op) if k.backend != "reference"]
            for trial in TRIALS[op](bench, dtype) if kernels else ():
                if bench.deadline.left < LEAST:
                    bench.skip(op, "against the oracle", shape=trial.shape, dtype=name_of(dtype))
                    continue
                _trial(bench, op, trial, kernels, dtype)


def _trial(bench: Bench, op: str, trial: Trial, kernels: list[Kernel], dtype: torch.dtype) -> None:
    oracle = next(k for k in entries(op) if k.backend == "reference")
    common: dict[str, Any] = {"op": op, "shape": trial.shape, "dtype": name_of(dtype), "section": bench.section}
    try:
        wanted, plain = (evaluate(within(oracle), trial, EVERYTHING, double) for double in (True, False))
        bounds = {
            what: max(TOLERANCE[name_of(dtype)], PLAIN_ERRORS * worst(plain[what], wanted[what])) for what in wanted
        }
    except Exception as error:
        bench.fail(op, "oracle", error, shape=trial.shape, dtype=name_of(dtype))
        return
    for kernel in kernels:
        who: dict[str, Any] = {**common, "kernel": kernel.name, "role": OURS if kernel.backend == "triton" else PLAIN}
        if why := refusal(kernel, trial.args):
            bench.book.add(Row(what="against the oracle", status=SKIPPED, note=why, **who))
            continue
        for what, judge in _judgements(bench, kernel, trial, wanted, bounds):
            try:
                bench.book.add(Row(what=what, **judge(), **who))
                bench.clock.wait()
            except Exception as error:
                bench.book.add(Row(what=what, status=FAILED, note=f"{type(error).__name__}: {error}"[:200], **who))


Judge = Callable[[], dict[str, Any]]


def _judgements(
    bench: Bench, kernel: Kernel, trial: Trial, wanted: Found, bounds: dict[str, float]
) -> Iterator[tuple[str, Judge]]:
    """The checks of a kernel: a name and the function that runs it."""
    function = within(kernel)
    parts = {"forward": "output", "backward": "gradient", "jvp": "tangent"}
    for capability, what in parts.items():
        if capability in kernel.provides and wanted[what]:
            only = frozenset({capability})
            yield (
                what,
                lambda w=what, only=only: judged(evaluate(function, trial, only)[w], wanted[w], bounds[w]),  # type: ignore[misc]
            )
    if kernel.backend == "triton" and "backward" in kernel.provides and trial.wrt:
        yield "same gradient twice, on request", lambda: repeated(function, trial)
        if bench.device.type == "cuda":
            yield "no host sync on a known layout", lambda: without_sync(function, trial)


def worst(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest relative RMS error among the tensors; infinite if one is not finite."""
    finite = all(bool(x.isfinite().all()) for x in found)
    errors = [relative_rms(a, b) for a, b in zip(found, wanted, strict=True)]
    return max(errors, default=0.0) if finite else float("inf")


def judged(found: list[Tensor], wanted: list[Tensor], bound: float) -> dict[str, Any]:
    """Error and status of tensors, against the oracle's."""
    error = worst(found, wanted)
    return {"error": error, "status": RIGHT if error <= bound else WRONG, "note": f"bound {bound:.2g}"}


def evaluate(function: Callable[..., Any], trial: Trial, asked: frozenset[str], double: bool = False) -> Found:
    """Outputs, gradients and tangents for cotangents and tangents drawn from a fixed seed.

    Args:
        asked: of "forward", "backward" and "jvp".
        double: in float64, from the same rounded numbers.
    """
    args = [_double(a) if double else a for a in trial.args]
    found: Found = {"output": [], "gradient": [], "tangent": []}
    if "forward" in asked:
        with torch.no_grad():
            found["output"] = tensors(function(*args))
    if "backward" in asked and trial.wrt:
        leaves = [args[i].detach().requires_grad_() for i in trial.wrt]
        outs = tensors(function(*_replaced(args, trial.wrt, leaves)))
        found["gradient"] = list(torch.autograd.grad(outs, leaves, _drawn(outs, 1)))
    if "jvp" in asked and trial.wrt:
        moving = tuple(args[i].detach() for i in trial.wrt)
        with torch.no_grad():
            pushed = torch.func.jvp(
                lambda *xs: tuple(tensors(function(*_replaced(args, trial.wrt, xs)))), moving, tuple(_drawn(moving, 2))
            )
        found["tangent"] = tensors(pushed[1])
    return found


def _double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    return tuple(_double(v) for v in value) if isinstance(value, tuple) else value


def _replaced(args: Sequence[Any], places: Sequence[int], values: Sequence[Tensor]) -> list[Any]:
    new = dict(zip(places, values, strict=True))
    return [new.get(i, a) for i, a in enumerate(args)]


def _drawn(like: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Random numbers that are exact in every type, so that a kernel and its float64 oracle see the same."""
    generator = torch.Generator(like[0].device).manual_seed(seed)
    drawn = (torch.randint(-8, 9, x.shape, generator=generator, device=x.device) for x in like)
    return [d.to(x.dtype) / 4 for d, x in zip(drawn, like, strict=True)]


def repeated(function: Callable[..., Any], trial: Trial) -> dict[str, Any]:
    """Two gradients under ``torch.use_deterministic_algorithms`` must be bitwise equal."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        first, second = (evaluate(function, trial, frozenset({"backward"}))["gradient"] for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    same = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    return {"status": RIGHT if same else WRONG, "note": "bit for bit" if same else "the bits differ"}


def without_sync(function: Callable[..., Any], trial: Trial) -> dict[str, Any]:
    """A second forward and backward on the same layout must not synchronise with the device."""
    args = list(trial.args)
    leaves = [args[i].detach().requires_grad_() for i in trial.wrt]
    with _no_waiting(False):
        outs = tensors(function(*_replaced(args, trial.wrt, leaves)))
        drawn = _drawn(outs, 1)
        torch.autograd.grad(outs, leaves, drawn)
    with _no_waiting(True):
        torch.autograd.grad(tensors(function(*_replaced(args, trial.wrt, leaves))), leaves, drawn)
    return {"status": RIGHT, "note": "none seen by torch"}


@contextmanager
def _no_waiting(on: bool) -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error" if on else "default")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
