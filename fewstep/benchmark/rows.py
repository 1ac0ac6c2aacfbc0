"""What a bench measures, as records: rows by seed, lines over all seeds; and the CSV files that hold them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fewstep.files import LineFile, write_file

SECONDS, FLOW = "seconds_", "seconds_flow"  # how the names of all times begin, and those of sampling
GAP = "gap_closed/"
NON_FINITE = "non_finite"
Unit = tuple[int | None, int | None]  # training and seed


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One measure of one method at one step count.

    ``made_for``: the student's contract names this step count. ``evaluations`` and ``training_seconds`` are what
    training the student took (None: not a student), evaluations of all networks together.
    """

    label: str
    method: str
    steps: int
    nfe: float
    guidance: float
    sampler: str
    made_for: bool
    metric: str
    value: float
    evaluations: float | None = None
    training_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row(Measured):
    """A measure of one training under one seed of the noise.

    ``training`` is the number of the replicate, from 0 (None: not a student); ``seed`` is None where no noise has a
    part.
    """

    training: int | None = None
    seed: int | None


@dataclass(frozen=True, kw_only=True)
class Line(Measured):
    """A measure over all trainings and seeds that have it.

    ``value`` is the mean, for times the median; ``half`` is half the width of the 95 % interval (None: a single value
    of a suite without records, or a time); ``count`` is the number of values, ``trainings`` that of trainings in them.
    """

    half: float | None
    count: int
    trainings: int = 0

    def bounds(self) -> dict[str, float]:
        """The ends of the interval, where there is one."""
        return {} if self.half is None else {"low": self.value - self.half, "high": self.value + self.half}


def is_quality(metric: str) -> bool:
    """Whether a measure is one of the suite's own."""
    return not metric.startswith((SECONDS, "speedup_", GAP)) and metric != NON_FINITE


def write_csv(
    path: Path,
    record: type,
    values: Iterable[Mapping[str, Any]],
    further: Iterable[str] = (),
    none: str = "n/a",
    kept: Iterable[Mapping[str, Any]] = (),
) -> None:
    """Write a CSV file, a row at a time: a process that is killed leaves what it wrote.

    Args:
        record: the dataclass whose fields are the columns; ``further`` columns follow, empty where a value lacks.
        none: stands for None.
        kept: rows that come first. They replace an earlier file in one move, so that none of them can be lost.

    Raises:
        Unwritable: when the disk refuses; the rows before stay.
    """
    columns, begin = [*(f.name for f in fields(record)), *further], io.StringIO()
    first = csv.DictWriter(begin, columns, lineterminator="\n")
    first.writeheader()
    first.writerows(kept)
    write_file(path, begin.getvalue())
    with closing(LineFile(path)) as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        for row in values:
            writer.writerow({name: as_text(value, none) for name, value in row.items()})


def as_text(value: Any, none: str = "n/a") -> Any:
    """None and truth values as the files have them."""
    return none if value is None else ("no", "yes")[value] if isinstance(value, bool) else value
