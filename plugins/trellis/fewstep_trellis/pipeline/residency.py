"""Which models are in memory, and where: each is on the device only while its stage runs."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

LOADING = "loading models"


class Clock:
    """Seconds by stage, in order of their first use; a stage inside another counts for itself only.

    Args:
        device: its work is waited for before the time is taken.
        tell: called with the name of what runs now, steps included.
    """

    def __init__(self, device: torch.device, tell: Callable[[str], None] = lambda text: None) -> None:
        self.device, self.tell, self.seconds = device, tell, dict[str, float]()
        self._inner, self._stage = [0.0], ""

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self.seconds.setdefault(stage, 0.0)
        began, self._stage = self._now(), stage
        self._inner.append(0.0)
        self.tell(stage)
        try:
            yield
        finally:
            passed, inner = self._now() - began, self._inner.pop()
            self.seconds[stage] += passed - inner
            self._inner[-1] += passed

    def on_step(self, done: int, steps: int) -> None:
        """A sampler's step is done."""
        self.tell(f"{self._stage} {done}/{steps}")

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class Shelf:
    """Loads models at their first use and lends them to a device.

    Args:
        device: where they compute. Afterwards they go back to the CPU's memory.
        keep: keep them there for the next object; otherwise each is freed after its use (``--low-memory``).
        clock: loading and moving are counted as a stage of their own.
    """

    def __init__(self, device: torch.device, keep: bool, clock: Clock) -> None:
        self.device, self.keep, self.clock = device, keep, clock
        self._kept: dict[str, Any] = {}

    @contextmanager
    def lend(self, name: str, load: Callable[[], Any]) -> Iterator[Any]:
        """The model of this name on the device, for the length of the block."""
        with self.clock(LOADING):
            model = self._kept.pop(name, None)
            model = prepared(load(), self.device) if model is None else model
            model.to(self.device)
        try:
            yield model
        finally:
            if self.keep:
                self._kept[name] = model.to("cpu")
            del model
            self._release()

    def clear(self) -> None:
        """Free every model; one that is needed again is loaded again."""
        self._kept.clear()
        self._release()

    def _release(self) -> None:
        if not self.keep:
            gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def prepared(model: Any, device: torch.device) -> Any:
    """On a CPU half-precision torsos compute in float32: there half is neither faster nor everywhere implemented."""
    network = getattr(model, "model", model)
    if device.type == "cpu" and hasattr(network, "convert_to_fp32"):
        network.convert_to_fp32()
    return model
