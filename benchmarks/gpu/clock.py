"""Timing: implementations in turn, with the cache flushed before each call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.gpu.times import Timing

Run = Callable[[], Any]
FLUSH = 256 * 2**20  # bytes; an H200 has 60 MB of L2
LEAST, MOST = 8, 60  # rounds


class Clock:
    """Times calls: by CUDA events on a GPU, by the host's clock on a CPU.

    Args:
        device: where the calls work.
        rounds: fixes the number of rounds; otherwise as many as ``seconds`` allow.
    """

    def __init__(self, device: torch.device, rounds: int | None = None) -> None:
        self.cuda, self.rounds = device.type == "cuda", rounds
        self._flush = torch.empty(FLUSH // 4, dtype=torch.int32, device=device) if self.cuda else None

    def wait(self) -> None:
        """Wait until the device is idle; raises its pending errors."""
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, run: Run) -> float:
        """Wall-clock seconds of one call, including the device's work."""
        self.wait()
        began = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - began

    def in_turn(self, runs: Mapping[str, Run], seconds: float = 1.5) -> dict[str, Timing]:
        """Time each run once per round, for about ``seconds`` in all, after three warm-up calls."""
        for run in runs.values():
            for _ in range(1 if self.rounds else 3):
                run()
        once = sum(self.seconds(run) for run in runs.values())
        rounds = self.rounds or max(LEAST, min(MOST, int(seconds / max(once, 1e-6))))
        marks: dict[str, list[Any]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, run in runs.items():
                marks[name].append(self._once(run))
        self.wait()
        return {
            name: Timing.of([self._ms(mark) for mark in found], [mark[0] for mark in found])
            for name, found in marks.items()
        }

    def _once(self, run: Run) -> tuple[float, Any, Any]:
        """Host milliseconds of one call, and on a GPU the events around it."""
        start = end = None
        if self._flush is not None:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._flush.zero_()  # flushes the cache, and keeps the device busy while the host runs ahead
            start.record()
        began = time.perf_counter()
        run()
        host = 1e3 * (time.perf_counter() - began)
        if end is not None:
            end.record()
        return host, start, end

    def _ms(self, mark: tuple[float, Any, Any]) -> float:
        host, start, end = mark
        return float(start.elapsed_time(end)) if self.cuda else host
