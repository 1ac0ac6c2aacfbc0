"""A stand-in for a CUDA graph where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable


class Rerun:
    """A replay runs the recorded function again, on the same input tensors."""

    made: list[Rerun] = []  # noqa: RUF012

    def __init__(self) -> None:
        self.replays = 0
        self.made.append(self)

    def record(self, run: Callable[[], None]) -> None:
        self.run = run
        run()

    def replay(self) -> None:
        self.replays += 1
        self.run()
