"""Percentiles and deadlines. Imports no torch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the sorted values lie, linear between neighbours (numpy's default)."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call; ``host`` is the time until it returned to Python."""

    median: float
    p20: float
    p80: float
    rounds: int
    host: float | None = None

    @classmethod
    def of(cls, values: Sequence[float], host: Sequence[float] = ()) -> Timing:
        """From the times of individual calls."""
        returned = percentile(host, 0.5) if host else None
        return cls(percentile(values, 0.5), percentile(values, 0.2), percentile(values, 0.8), len(values), returned)


@dataclass
class Deadline:
    """A time limit, by a monotonic clock."""

    seconds: float
    now: Callable[[], float] = time.monotonic
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = self.now()

    @property
    def left(self) -> float:
        """Seconds left, 0 at least."""
        return max(0.0, self.began + self.seconds - self.now())

    def part(self, seconds: float) -> Deadline:
        """A deadline for a part: its own seconds, and no more than are left."""
        return Deadline(min(seconds, self.left), self.now)
