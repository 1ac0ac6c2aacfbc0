"""Where a run's numbers go: always to ``metrics.jsonl``, and to the registered trackers that are asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from fewstep.files import LineFile, sync, write_file

METRICS = "metrics.jsonl"
Row = Mapping[str, Any]
MEANS = ("loss", "grad_norm")


class Tracker(Protocol):
    """A plugin registers a class that is constructed as ``cls(folder, config, step)``.

    ``folder`` is the run's folder, ``config`` its resolved config, and ``step`` the number of iterations done before,
    so that a tracker can drop later rows that a killed run has left. A tracker with ``picture(name, path, step)`` is
    also given the run's pictures, PNG files.
    """

    def log(self, row: Row) -> None:
        """Take a row: step, loss, total, grad_norm, lr, seconds, evaluations. Several of them are tables by name."""

    def flush(self) -> None:
        """Write everything to disk; called before a checkpoint is written."""

    def close(self) -> None:
        """The run ended."""


class Window:
    """The mean of every number since the last written row, so that rows cover every iteration of every phase.

    Args:
        state: of a checkpoint.

    Attributes:
        state: sum and count of each number by name, and the newest learning rates; a JSON value.
    """

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        self.state = state or {"loss": {}, "grad_norm": {}, "lr": {}}

    def add(self, row: Row) -> None:
        """Add the row of an iteration; a number that is None (an overflow under fp16) does not count."""
        for key in MEANS:
            for name, value in row[key].items():
                if value is not None:
                    total, count = self.state[key].get(name, [0.0, 0])
                    self.state[key][name] = [total + value, count + 1]
        self.state["lr"].update(row["lr"])

    def take(self, row: Row) -> dict[str, Any]:
        """The row to write at this iteration: means, the newest learning rates, the sum of the loss terms' means."""
        means = {key: {name: total / count for name, (total, count) in self.state[key].items()} for key in MEANS}
        out = {**row, **means, "total": sum(means["loss"].values()), "lr": self.state["lr"]}
        self.state = Window().state
        return out


class JsonLines:
    """``metrics.jsonl``, one JSON object per line. Rows beyond ``step`` and a half-written last line are dropped."""

    def __init__(self, folder: Path, config: Mapping[str, Any], step: int) -> None:
        del config
        self.path = folder / METRICS
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
            write_file(self.path, "".join(line + "\n" for line in lines if _written_until(step, line)))
        self.file = LineFile(self.path)

    def log(self, row: Row) -> None:
        self.file.write(json.dumps(row) + "\n")

    def flush(self) -> None:
        sync(self.path)

    def close(self) -> None:
        self.file.close()


def _written_until(step: int, line: str) -> bool:
    try:
        row = json.loads(line)
    except ValueError:
        return False
    return isinstance(row, dict) and bool(row.get("step", step + 1) <= step)
