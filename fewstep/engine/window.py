"""Rows of ``metrics.jsonl``: the mean of every number since the last row, so that no phase falls between two rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MEANS = ("loss", "grad_norm")


class Window:
    """Gathers the rows of single iterations; its state is part of a checkpoint."""

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
