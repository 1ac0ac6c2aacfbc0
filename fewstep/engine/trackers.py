"""Where a run's numbers go: always ``metrics.jsonl``; to registered trackers when asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from fewstep.errors import FewstepError
from fewstep.files import sync, write_file

METRICS = "metrics.jsonl"
Row = Mapping[str, Any]
MEANS = ("loss", "grad_norm")


class Tracker(Protocol):
    """A plugin registers a class that is constructed as ``cls(folder, config, step)``.

    ``folder``: the run's. ``config``: as resolved. ``step``: iterations done before, so that rows beyond it (of a
    killed run) are dropped.
    """

    def log(self, row: Row) -> None:
        """Take a row: step, loss, total, grad_norm, lr, seconds, evaluations; nested tables by name."""

    def flush(self) -> None:
        """Have everything on the disk; called before a checkpoint is written."""

    def close(self) -> None:
        """The run ended."""


class Window:
    """The means of every number since the last written row, so that no phase falls between two rows.

    Its state is part of a checkpoint.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self.sums: dict[str, dict[str, list[float]]] = {key: {} for key in MEANS}
        self.lr: dict[str, float] = {}
        if state is not None:
            self.sums = {key: {name: list(pair) for name, pair in state["sums"][key].items()} for key in MEANS}
            self.lr = dict(state["lr"])

    def add(self, row: Mapping[str, Any]) -> None:
        """Take the row of an iteration; a number that is None (an overflow under fp16) does not count."""
        for key in MEANS:
            for name, value in row[key].items():
                if value is not None:
                    total, count = self.sums[key].get(name, [0.0, 0])
                    self.sums[key][name] = [total + value, count + 1]
        self.lr.update(row["lr"])

    def take(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row to write at this iteration: means, the newest learning rates, the sum of the loss terms' means."""
        means = {key: {name: s / n for name, (s, n) in self.sums[key].items()} for key in MEANS}
        out = {**row, **means, "total": sum(means["loss"].values()), "lr": self.lr}
        self.sums, self.lr = {key: {} for key in MEANS}, {}
        return out

    def state(self) -> dict[str, Any]:
        """As JSON values."""
        return {"sums": {key: dict(names) for key, names in self.sums.items()}, "lr": dict(self.lr)}


class JsonLines:
    """``metrics.jsonl``, a JSON object a line. Rows beyond ``step`` and a half-written last line are dropped."""

    def __init__(self, folder: Path, config: Mapping[str, Any], step: int) -> None:
        del config
        self.path = folder / METRICS
        if self.path.exists():
            write_file(self.path, "".join(line + "\n" for line in _until(self.path, step)))
        self.file = self.path.open("a", encoding="utf-8")

    def log(self, row: Row) -> None:
        try:
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()
        except OSError as error:
            raise FewstepError(f"{self.path}: cannot be written: {error.strerror or error}") from error

    def flush(self) -> None:
        sync(self.path)

    def close(self) -> None:
        self.file.close()


def _until(path: Path, step: int) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and row.get("step", step + 1) <= step:
            yield line
