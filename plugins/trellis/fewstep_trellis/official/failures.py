"""Objects that cannot be used: named as they turn up, counted, replaced by a rule, and an error past a limit."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence

from fewstep.errors import FewstepError
from fewstep_trellis.official.files import ItemError

SHOWN = 5  # reasons that an error lists
NAMED = 20  # objects with a line of their own; after these, a line at every doubling
LEAST = 20  # the default limit is at least this; if more fail before one is usable, all probably will


class Failures:
    """The unusable objects of a data set of ``count`` samples. Thread-safe.

    Args:
        limit: how many are allowed; None: half of all, or ``LEAST``.

    Attributes:
        one_is_usable: whether any object was read so far.
    """

    def __init__(self, count: int, limit: int | None) -> None:
        self.count, self.limit = count, max(LEAST, count // 2) if limit is None else limit
        self.reasons: dict[int, str] = {}
        self.one_is_usable = False
        self._notes: list[str] = []
        self._lock = threading.Lock()

    def add(self, index: int, error: ItemError) -> None:
        """Record an unusable sample; the same one again is not counted.

        Raises:
            FewstepError: for more of them than are allowed.
        """
        with self._lock:
            if index in self.reasons:
                return
            self.reasons[index] = str(error)
            number = len(self.reasons)
            of = f"number {number} of data.max_failures={self.limit}"
            if number <= NAMED:
                self._notes.append(f"warning: {error}; object left out, {of}")
            elif number & (number - 1) == 0:
                self._notes.append(f"warning: {number} objects left out so far, the last {error}; {of}")
            if number > (self.limit if self.one_is_usable else min(self.limit, LEAST)):
                raise self._fatal()

    def _fatal(self) -> FewstepError:
        reasons = list(self.reasons.values())
        more = [f"  and {len(reasons) - SHOWN} more"] if len(reasons) > SHOWN else []
        if self.one_is_usable:
            accepted = f"accepted: at most {min(self.limit, self.count - 1)}"
            head = f"data.max_failures: {len(reasons)} of {self.count} objects cannot be used; {accepted}"
        else:
            accepted = "accepted: data.roots, data.latent_model and backbone.teacher that fit each other"
            head = (
                f"data.roots: {len(reasons)} of {self.count} objects cannot be used, and none could so far; {accepted}"
            )
        return FewstepError("\n".join([head, *(f"  {reason}" for reason in reasons[:SHOWN]), *more]))

    def stand_in(self, index: int, tried: Collection[int], loads: Sequence[int] | None) -> int:
        """What replaces an unusable sample: the next one, cyclically, that was not tried and is no heavier by
        ``loads``; if all are heavier, the lightest.

        Raises:
            FewstepError: all were tried.
        """
        if len(tried) == self.count:
            raise self._fatal()
        waiting = [j % self.count for j in range(index + 1, index + self.count) if j % self.count not in tried]
        if loads is None:
            return waiting[0]
        light = (j for j in waiting if loads[j] <= loads[index])
        return next(light, min(waiting, key=lambda j: loads[j]))

    def notes(self) -> list[str]:
        """The lines that have come up since the last call."""
        with self._lock:
            notes, self._notes = self._notes, []
        return notes
