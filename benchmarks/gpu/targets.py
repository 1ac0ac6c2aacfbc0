"""The targets of the kernels on an H200, evaluated on rows. Each ratio is to a peer timed in the same run."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.rows import MEASURED, NOT_YET, Row

COLUMNS = ("target", "what", "unit", "floor", "goal", "limit", "measured", "cases", "verdict", "device", "commit")


@dataclass(frozen=True)
class Target:
    """A floor to hold and a goal to reach.

    Args:
        key: what rows name in ``target``.
        what: in words.
        unit: "x" (``Row.ratio``), "ms" (``Row.median_ms``) or "TFLOP/s" (``Row.tflops``).
        floor: None where only a goal was set.
        goal: what is aimed at.
        limit: what the hardware allows, in words.
        lower: whether lower is better.
        best: whether the best case counts, for a rate to be reached at some size; otherwise the worst case counts.
    """

    key: str
    what: str
    unit: str = "x"
    floor: float | None = None
    goal: float | None = None
    limit: str = ""
    lower: bool = False
    best: bool = False

    def value(self, rows: Iterable[Row]) -> tuple[float | None, int]:
        """The value that counts among the measured cases, and their number."""
        field = {"x": "ratio", "ms": "median_ms", "TFLOP/s": "tflops"}[self.unit]
        found = [getattr(r, field) for r in rows if r.target == self.key and r.status == MEASURED]
        numbers = [float(v) for v in found if v is not None]
        if not numbers:
            return None, 0
        return (min if self.lower == self.best else max)(numbers), len(numbers)

    def reached(self, value: float, wanted: float | None) -> bool:
        """Whether a value is at least as good as wanted."""
        return wanted is not None and (value <= wanted if self.lower else value >= wanted)

    def verdict(self, value: float | None) -> str:
        """The verdict on a value, in words."""
        if value is None:
            return NOT_YET
        if self.reached(value, self.goal):
            return "goal reached"
        if self.floor is None:
            return "below the goal"
        return "floor held" if self.reached(value, self.floor) else "below the floor"

    def text(self, value: float | None) -> str:
        """A value with its unit; a dash for None."""
        if value is None:
            return "-"
        return f"{value:.3g}x" if self.unit == "x" else f"{value:.4g} {self.unit}"


TARGETS = (
    Target("varlen-forward", "varlen self-attention, forward, 5k to 32k tokens, against varlen_attn", "x", 1.0, 1.25),
    Target(
        "varlen-forward-rate", "the same, fastest length", "TFLOP/s", None, 400.0, "~450 at head width 64", best=True
    ),
    Target("varlen-forward-fa3", "the same, bf16, against the FlashAttention-3 wheel", "x", None, 0.85),
    Target("varlen-backward", "its backward, against varlen_attn", "x", 0.9, 1.15),
    Target("varlen-backward-rate", "the same, fastest length", "TFLOP/s", None, 330.0, "~450", best=True),
    Target("cross", "cross-attention to 1374 keys, forward, against varlen_attn", "x", 1.0, 1.2),
    Target("tangent", "value and tangent together, over own forward", "x", 3.6, 3.0, "3 times the FLOPs", lower=True),
    Target("tangent-math", "the same at 4096 tokens, against MATH SDPA", "x", None, 10.0),
    Target(
        "windowed",
        "windowed 8^3, 20k voxels, layout included, against varlen_attn over windows",
        "x",
        1.5,
        2.0,
        "bandwidth",
    ),
    Target(
        "convolution",
        "submanifold convolution, forward + backward, 128 channels, 20k voxels, against spconv-triton",
        "x",
        1.0,
        1.2,
    ),
    Target(
        "train-step", "MDT training step, against the same algorithm in eager torch with FA2", "x", 1.2, 1.4, "~1.6x"
    ),
    Target(
        "train-gradient",
        "error of its gradients against float32, over that of eager torch",
        "x",
        1.5,
        1.1,
        "1.0",
        lower=True,
    ),
    Target("ss-flow", "SS flow, forward, batch 1", "ms", 13.0, 10.5, "6.6 ms", lower=True),
    Target("image-1", "image to Gaussians, 8k tokens, 1 step x 2", "ms", 110.0, 75.0, "30.5 ms", lower=True),
    Target("image-2", "image to Gaussians, 8k tokens, 2 steps x 2", "ms", 170.0, 120.0, "54 ms", lower=True),
    Target("speed-1", "the same with 1 step x 2, against 25 guided steps x 2", "x", None, 12.0),
    Target("speed-2", "the same with 2 steps x 2, against 25 guided steps x 2", "x", None, 8.0),
)
BY_KEY = {target.key: target for target in TARGETS}


def bounds(key: str) -> tuple[float | None, float | None]:
    """Floor and goal of a target; None where there is no such target."""
    target = BY_KEY.get(key)
    return (target.floor, target.goal) if target else (None, None)


def table(rows: Sequence[Row]) -> list[dict[str, str]]:
    """One line per target: floor and goal, what was measured, and the verdict."""
    lines = []
    for target in TARGETS:
        value, cases = target.value(rows)
        of = next((r for r in rows if r.target == target.key and r.status == MEASURED), None)
        cells = (
            target.key,
            target.what,
            target.unit,
            target.text(target.floor),
            target.text(target.goal),
            target.limit or "-",
            NOT_YET if value is None else target.text(value),
            str(cases) if cases else NOT_YET,
            target.verdict(value),
            of.device if of else NOT_YET,
            of.commit if of else NOT_YET,
        )
        lines.append(dict(zip(COLUMNS, cells, strict=True)))
    return lines


def write(path: Path, rows: Sequence[Row]) -> None:
    """The table as a CSV file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table(rows))
