"""What a bench measures: rows by training and seed, lines over all of them; and the CSV files that hold them."""

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

    @property
    def cell(self) -> Cell:
        """What the row is of."""
        return self.label, self.steps, (self.training, self.seed)


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


_ROW = TypeAdapter(Row)


def as_row(line: Mapping[str, str]) -> Row:
    """A line of ``rows.csv``, in which nothing stands for None. Raises KeyError and pydantic's ValidationError."""
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
        """As of a ``Row``."""
        return self.label, self.steps, (self.training, self.seed)


def read_rows(path: Path) -> list[EarlierRow]:
    """The rows of an earlier ``rows.csv``.

    Raises:
        FewstepError: for a file that is missing, no CSV, empty, without a needed column, or with a value of another
            type.
    """
    key, accepted = f"--compare: {str(path)!r}", "accepted: rows.csv of an earlier bench"
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
        columns, rows = list(reader.fieldnames or ()), list(reader)
    except FewstepError as error:
        raise FewstepError(f"--compare: {error}; {accepted}") from None
    except csv.Error as error:
        raise FewstepError(f"{key}: is no CSV ({error}); {accepted}") from None
    missing = [name for name, field in EarlierRow.model_fields.items() if field.is_required() and name not in columns]
    if missing:
        hints = "".join(f"; {near!r} instead of {name!r}?" for name in missing if (near := nearest(name, columns)))
        has = ", ".join(columns) or "none, the file is empty"
        raise FewstepError(f"{key}: columns {', '.join(missing)} are missing (it has: {has}){hints}; {accepted}")
    if not rows:
        raise FewstepError(f"{key}: holds no rows; {accepted}")
    found = []
    for line, row in enumerate(rows, 2):
        try:
            found.append(EarlierRow.model_validate(row))
        except ValidationError as error:
            first = error.errors()[0]
            got = f"{first['loc'][0]} is {first['input']!r} ({first['msg']})"
            raise FewstepError(f"{key}, line {line}: {got}; {accepted}") from None
    return found
