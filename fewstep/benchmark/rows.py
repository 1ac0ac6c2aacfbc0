"""What a bench measures: rows by training and seed, lines that summarise them, and their CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, TypeAdapter, ValidationError

from fewstep.errors import FewstepError, nearest
from fewstep.files import LineFile, write_file
from fewstep.texts import read_text

SECONDS, FLOW = "seconds_", "seconds_flow"  # how the names of all times begin, and those of sampling
GAP = "gap_closed/"
NON_FINITE = "non_finite"
Unit = tuple[int | None, int | None]  # training and seed
Cell = tuple[str, int, Unit]  # label, steps, unit


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One measure of one method at one step count.

    ``made_for`` says that the student's contract names this step count. ``evaluations`` (of all networks together) and
    ``training_seconds`` are what training the student took, None for anything but a student.
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

    ``training`` is the number of the replicate, from 0, None for anything but a student; ``seed`` is None if no noise
    is involved.
    """

    training: int | None = None
    seed: int | None

    @property
    def cell(self) -> Cell:
        """The cell that the row belongs to."""
        return self.label, self.steps, (self.training, self.seed)


@dataclass(frozen=True, kw_only=True)
class Line(Measured):
    """A measure summarised over all trainings and seeds that have it.

    ``value`` is the mean, for times the median; ``half`` is half the width of the 95 % interval, None for times and for
    a single value of a suite without records; ``count`` is the number of values, ``trainings`` that of trainings.
    """

    half: float | None
    count: int
    trainings: int = 0

    def bounds(self) -> dict[str, float]:
        """The ends of the interval; empty if there is none."""
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
    """Write a CSV file row by row, so that a process that is killed leaves what it has written.

    Args:
        record: the dataclass whose fields are the columns; ``further`` columns follow, empty where a row lacks them.
        none: stands for None.
        kept: rows that come first. They replace an earlier file atomically, so that none of them can be lost.

    Raises:
        Unwritable: if the disk refuses; earlier rows stay.
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
    """None and booleans as they are written in files; other values unchanged."""
    return none if value is None else ("no", "yes")[value] if isinstance(value, bool) else value


_ROW = TypeAdapter(Row)


def as_row(line: Mapping[str, str]) -> Row:
    """A line of ``rows.csv``, in which an empty field is None. Raises KeyError and pydantic's ValidationError."""
    optional = ("seed", "training", "evaluations", "training_seconds")
    values = {f.name: line[f.name] for f in fields(Row)}
    return _ROW.validate_python(
        {name: None if not text and name in optional else text for name, text in values.items()}
    )


Optional = Annotated[int | None, BeforeValidator(lambda text: None if text == "" else text)]


class EarlierRow(BaseModel):
    """What ``--compare`` reads of a row in ``rows.csv``."""

    label: str
    steps: int
    seed: Optional
    training: Optional = None
    metric: str
    value: float
    backbone: str = ""
    samples: str = ""
    machine: str = ""

    @property
    def cell(self) -> Cell:
        """The cell that the row belongs to."""
        return self.label, self.steps, (self.training, self.seed)


def read_rows(path: Path) -> list[EarlierRow]:
    """The rows of an earlier ``rows.csv``.

    Raises:
        FewstepError: for a file that is missing, not CSV, empty, without a required column, or with a value of another
            type.
    """
    key, accepted = f"--compare: {str(path)!r}", "accepted: rows.csv of an earlier bench"
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
        columns, rows = list(reader.fieldnames or ()), list(reader)
    except FewstepError as error:
        raise FewstepError(f"--compare: {error}; {accepted}") from None
    except csv.Error as error:
        raise FewstepError(f"{key}: is not CSV ({error}); {accepted}") from None
    missing = [name for name, field in EarlierRow.model_fields.items() if field.is_required() and name not in columns]
    if missing:
        hints = "".join(f"; {near!r} instead of {name!r}?" for name in missing if (near := nearest(name, columns)))
        has = ", ".join(columns) or "none, the file is empty"
        raise FewstepError(f"{key}: columns {', '.join(missing)} are missing (it has: {has}){hints}; {accepted}")
    if not rows:
        raise FewstepError(f"{key}: holds no rows; {accepted}")
    parsed = []
    for line, row in enumerate(rows, 2):
        try:
            parsed.append(EarlierRow.model_validate(row))
        except ValidationError as error:
            first = error.errors()[0]
            got = f"{first['loc'][0]} is {first['input']!r} ({first['msg']})"
            raise FewstepError(f"{key}, line {line}: {got}; {accepted}") from None
    return parsed
