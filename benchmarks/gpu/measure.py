"""From a case to its rows: every implementation is called once and compared, then all are timed in turn."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.bench import OURS, PEER, Bench, Case, Runs, brief
from benchmarks.gpu.clock import Run
from benchmarks.gpu.rows import EAGER, FAILED, GRAPH, MEASURED, SKIPPED, WRONG, Row
from benchmarks.gpu.targets import bounds
from benchmarks.gpu.times import Timing
from benchmarks.gpu.work import gbs, tflops
from fewstep.core.graphs import CudaGraph
from fewstep.ops.table import table

AGREE = 3e-2  # relative RMS beyond which two implementations do not compute the same thing in half precision
OWN_FORWARD = "own forward"
LEAST = 4.0  # seconds below which no further case is begun
HOST_BOUND = 0.3  # host share of a call's time above which it is also timed as a CUDA graph


def measure_all(bench: Bench, cases: Iterable[Case], seconds: float = 1.5) -> None:
    """Measure each case in turn, in the time that the section has; what is skipped gets a row."""
    for case in cases:
        if bench.deadline.left < LEAST:
            bench.skip(case.op, case.what, shape=case.shape, dtype=case.dtype)
            continue
        try:
            measure(bench, case, min(seconds, bench.deadline.left / 2))
        except Exception as error:  # one case must not take the others with it
            bench.fail(case.op, case.what, error, shape=case.shape, dtype=case.dtype)
        gc.collect()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()


def measure(bench: Bench, case: Case, seconds: float) -> None:
    """Measure one case and write its rows at once."""
    runs = case.setup()
    calls, errors = compare(bench, runs)
    timings = bench.clock.in_turn(calls, seconds) if calls else {}
    ours = next((name for name, role in runs.roles.items() if role == OURS and name in timings), None)
    ours = ours or next(iter(timings), None)  # without Triton, the first kernel of the table
    bench.book.add(*(_row(bench, case, runs, name, ours, timings, errors) for name in runs.roles))
    if bench.device.type == "cuda" and case.recordable and ours is not None and host_bound(timings[ours]):
        under_graphs(bench, case, runs, calls, errors, seconds / 2)


def host_bound(timing: Timing) -> bool:
    """Whether the host takes so much of a call that a CUDA graph may shorten it."""
    return timing.host is not None and timing.host > HOST_BOUND * timing.median


def under_graphs(
    bench: Bench, case: Case, runs: Runs, calls: dict[str, Run], errors: dict[str, float], seconds: float
) -> None:
    """Write rows for the same calls as CUDA graphs: device time only. What cannot be captured is skipped."""
    recorded: dict[str, Run] = {}
    for name, call in calls.items():
        try:
            graph = CudaGraph()
            graph.record(call)
            graph.replay()
            bench.clock.wait()
            recorded[name] = graph.replay
        except Exception as error:  # if the device fails, the section ends, but its eager rows are on disk
            print(f"{case.op} {case.what} {name}: no graph: {brief(error)}", flush=True)
    timings = bench.clock.in_turn(recorded, seconds) if recorded else {}
    ours = next((name for name in timings if runs.roles[name] == OURS), None)
    for name in timings:
        bench.book.add(_row(bench, case, runs, name, ours, timings, errors, GRAPH))


def compare(bench: Bench, runs: Runs) -> tuple[dict[str, Run], dict[str, float]]:
    """Call each implementation once; those that raise or differ from the first are noted in ``missing``.

    The first is ours, which an earlier section compared with the oracle.

    Returns:
        The calls to time, and the error of everything that was called.
    """
    calls: dict[str, Run] = {}
    errors: dict[str, float] = {}
    wanted: list[Tensor] | None = None
    for name, build in runs.builders.items():
        try:
            calls[name] = build()
            found = tensors(calls[name]())
            bench.clock.wait()
        except Exception as error:  # out of memory, an unsupported shape, a bug: a reason in any case
            calls.pop(name, None)
            runs.missing[name] = brief(error)
            continue
        wanted = wanted if wanted is not None else found
        errors[name] = max((relative_rms(a, b) for a, b in zip(found, wanted, strict=False)), default=0.0)
        if not errors[name] <= AGREE:  # not a number is wrong too
            del calls[name]
            runs.missing[name] = f"relative RMS {errors[name]:.1e} to {next(iter(errors))}"
        del found
    return calls, errors


def tensors(found: Any) -> list[Tensor]:
    """The tensors of a result, in order."""
    if isinstance(found, Tensor):
        return [found]
    return [x for part in found for x in tensors(part)] if isinstance(found, (list, tuple)) else []


def relative_rms(got: Tensor, wanted: Tensor) -> float:
    """|got - wanted| / |wanted| in float64; |got| where ``wanted`` is zero."""
    if got.shape != wanted.shape:
        return float("inf")
    a, b = got.detach().double(), wanted.detach().double()
    size = float(b.norm())
    return float((a - b).norm()) / size if size else float(a.norm())


def _row(
    bench: Bench,
    case: Case,
    runs: Runs,
    name: str,
    ours: str | None,
    timings: dict[str, Timing],
    errors: dict[str, float],
    mode: str = EAGER,
) -> Row:
    timing, error = timings.get(name), errors.get(name)
    common: dict[str, Any] = {"shape": case.shape, "dtype": case.dtype, "kernel": name, "role": runs.roles[name]}
    if timing is None:
        note = runs.missing.get(name, "")
        status = WRONG if error is not None else FAILED if "Error" in note and runs.roles[name] != PEER else SKIPPED
        return Row(bench.section, case.op, case.what, **common, error=error, status=status, note=note)
    counts = case.mode == mode and runs.roles.get(ours or "") == OURS
    target = (case.rate if name == ours else case.against.get(name, "")) if counts else ""
    floor, goal = bounds(target)
    return Row(
        bench.section,
        case.op,
        case.what,
        **common,
        median_ms=timing.median,
        p20_ms=timing.p20,
        p80_ms=timing.p80,
        tflops=tflops(case.flops, timing.median),
        gbs=gbs(case.moved, timing.median),
        share=bench.roof.share(case.flops, case.moved, case.dtype, timing.median),
        peer=name if ours is not None and name != ours else "",
        ratio=ratio(name, timings, ours),
        target=target,
        floor=floor,
        goal=goal,
        error=error,
        status=MEASURED,
        note=_note(bench, case, runs, name, timing),
        host_ms=timing.host,
        mode=mode,
    )


def _note(bench: Bench, case: Case, runs: Runs, name: str, timing: Timing) -> str:
    checked = runs.roles[name] == OURS and case.op in table()
    remark = bench.remark(case.op, name, case.dtype) if checked else ""
    return f"{timing.rounds} rounds" + (f"; {remark}" if remark else "")


def ratio(name: str, timings: dict[str, Timing], ours: str | None) -> float | None:
    """How many times as long ``name`` takes as ours; for our own forward, how many times as long ours takes."""
    if ours is None or name == ours:
        return None
    found = timings[name].median / timings[ours].median
    return 1 / found if name == OWN_FORWARD else found
