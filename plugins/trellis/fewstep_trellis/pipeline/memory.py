"""Which models are in memory and where, how long stages take, and what is said when memory runs out."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.core.graphs import Graphed
from fewstep.errors import FewstepError
from fewstep_trellis.pipeline.request import Unusable

LOADING = "loading models"
STATUS = Path("/proc/self/status")


class Clock:
    """Seconds by stage, in order of first use; the time of a nested stage is not counted in the outer one.

    Args:
        device: synchronised before each reading.
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
        stay: keep them on the device (``--graphs``).
    """

    def __init__(self, device: torch.device, keep: bool, clock: Clock, stay: bool = False) -> None:
        self.device, self.keep, self.clock, self.stay = device, keep, clock, stay
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
                self._kept[name] = model if self.stay else model.to("cpu")
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


class OnDevice:
    """The base of what runs a pipeline: models lent by a shelf, their times, and CUDA-graph replays of dense networks.

    A dataclass that derives from it has these fields.

    Attributes:
        device: where it computes.
        low_memory: hold one model at a time, loading it anew for each prompt.
        graphs: keep every model on the device and, on CUDA, replay the structure flow and its decoder as CUDA graphs.
    """

    device: torch.device
    low_memory: bool
    graphs: bool

    def __post_init__(self) -> None:
        if self.graphs and self.low_memory:
            raise FewstepError("--graphs keeps every model on the device, and --low-memory one at a time: choose one")
        self.clock = Clock(self.device)
        self.shelf = Shelf(self.device, not self.low_memory, self.clock, stay=self.graphs)
        self.replays = Graphed(warnings.warn) if self.graphs and self.device.type == "cuda" else None

    def _guarded(self, samples: int = 1) -> AbstractContextManager[None]:
        """Around what may run out of memory; the message says what helps with this runner's options."""
        return memory_guard(samples, self.low_memory, self.graphs)

    def _replayed(self, decoder: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        """``decoder(z)``; the next replay overwrites the result of this one."""
        return decoder(z) if self.replays is None else self.replays(decoder, lambda z: (decoder(z),), [z])[0]


def prepared(model: Any, device: torch.device) -> Any:
    """The model, on a CPU in float32 throughout: half precision is no faster there, and not implemented everywhere."""
    network = getattr(model, "model", model)
    if device.type == "cpu" and hasattr(network, "convert_to_fp32"):
        network.convert_to_fp32()
    return model


def peak_memory(device: torch.device) -> dict[str, float]:
    """Peaks in GiB so far: "process" (resident set) and, on a GPU, "GPU" (allocated by torch)."""
    found = {"process": _resident() / 2**30}
    if device.type == "cuda":
        found["GPU"] = torch.cuda.max_memory_allocated(device) / 2**30
    return found


def _resident() -> int:
    """Bytes of the largest resident set, of this program alone (``ru_maxrss`` begins with that of its parent)."""
    if STATUS.is_file():
        line = next((line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:")), "0 0")
        return int(line.split()[1]) * 1024
    import resource  # not on Windows, where nothing is known

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@contextmanager
def memory_guard(samples: int, low_memory: bool, graphs: bool = False) -> Iterator[None]:
    """Turn running out of memory, on a GPU or a CPU, into one message with what helps.

    Raises:
        Unusable: in its place.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        less = "--low-memory" + " in place of --graphs" * graphs
        hints = [less] * (not low_memory) + [f"fewer --samples than {samples}"] * (samples > 1)
        first = (str(error).strip().splitlines() or ["out of memory"])[0]
        advice = " or ".join([*hints, "a smaller model, or --device cpu with enough memory"])
        raise Unusable(f"out of memory ({first[:160]}); try {advice}") from None


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; torch's CPU allocator has no error class of its own."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "DefaultCPUAllocator" in str(error) or "not enough memory" in str(error)
