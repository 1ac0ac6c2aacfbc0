"""Objects that cannot be read: named as they turn up, counted, replaced by a rule, and an error past a limit."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from fewstep.errors import FewstepError
from fewstep_trellis.official.files import ItemError

SHOWN = 5


class Failures:
    """The unreadable objects of a data set of ``count`` samples, of which ``limit`` are allowed. Safe among threads."""

    def __init__(self, count: int, limit: int) -> None:
        self.count, self.limit = count, limit
        self.reasons: dict[int, str] = {}
        self._notes: list[str] = []
        self._lock = threading.Lock()

    def add(self, index: int, error: ItemError) -> None:
        """Note a sample; a second time it is not counted again.

        Raises:
            FewstepError: for more of them than are allowed.
        """
        with self._lock:
            if index in self.reasons:
                return
            self.reasons[index] = str(error)
            number = len(self.reasons)
            self._notes.append(f"warning: {error}; object left out, number {number} of data.max_failures={self.limit}")
            if number > self.limit or number == self.count:
                raise FewstepError("\n".join(self._fatal()))

    def _fatal(self) -> list[str]:
        reasons = list(self.reasons.values())
        more = [f"and {len(reasons) - SHOWN} more"] if len(reasons) > SHOWN else []
        accepted = min(self.limit, self.count - 1)
        head = f"data.max_failures: {len(reasons)} of {self.count} objects cannot be read; accepted: at most {accepted}"
        return [head, *(f"  {reason}" for reason in reasons[:SHOWN]), *more]

    def stand_in(self, index: int, loads: Sequence[int] | None) -> int:
        """What is taken in the place of an unreadable sample: the next of the data set, the first one after the last,
        that is not known to be unreadable and no heavier; where all are heavier, the lightest.
        """
        readable = [j % self.count for j in range(index + 1, index + self.count) if j % self.count not in self.reasons]
        if loads is None:
            return readable[0]
        light = (j for j in readable if loads[j] <= loads[index])
        return next(light, min(readable, key=lambda j: loads[j]))

    def notes(self) -> list[str]:
        """The lines that have come up since the last call."""
        with self._lock:
            notes, self._notes = self._notes, []
        return notes
