"""Wall time, processor time and peak resident memory of a block of code."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Phase:
    """``peak_mib`` is the largest resident memory during the block, including what was resident before.

    ``cpu_seconds`` is the processor time of all threads, which other processes on the machine affect less.
    """

    name: str
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_mib: float = 0.0


@contextmanager
def measured(name: str) -> Iterator[Phase]:
    """Measure a block; Linux's high-water mark (VmHWM) is reset first (proc(5), clear_refs)."""
    phase, start, cpu = Phase(name), time.perf_counter(), time.process_time()
    CLEAR.write_text("5")
    yield phase
    phase.seconds, phase.cpu_seconds = round(time.perf_counter() - start, 2), round(time.process_time() - cpu, 2)
    phase.peak_mib = round(_high_water() / 1024, 1)


def _high_water() -> int:
    """VmHWM in KiB."""
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
