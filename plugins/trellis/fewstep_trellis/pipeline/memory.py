"""How much memory a run took, and what is said when there was not enough."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fewstep_trellis.pipeline.prompt import Unusable

STATUS = Path("/proc/self/status")


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
def memory_guard(samples: int, low_memory: bool) -> Iterator[None]:
    """Turn running out of memory, on a GPU or a CPU, into one message with what helps.

    Raises:
        Unusable: in its place.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        hints = ["--low-memory"] * (not low_memory) + [f"fewer --samples than {samples}"] * (samples > 1)
        first = (str(error).strip().splitlines() or ["out of memory"])[0]
        advice = " or ".join([*hints, "a smaller model, or --device cpu with enough memory"])
        raise Unusable(f"out of memory ({first[:160]}); try {advice}") from None


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; torch's CPU allocator has no error class of its own."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "DefaultCPUAllocator" in str(error) or "not enough memory" in str(error)
