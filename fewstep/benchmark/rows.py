"""Measurements, and the CSV files of a bench: written record by record, read back by ``--compare``."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fewstep.errors import FewstepError, nearest

ROWS = "rows.csv"
SECONDS, FLOW = "seconds_", "seconds_flow"  # how the names of all times begin, and those of sampling
GAP = "gap_closed/"
NON_FINITE = "non_finite"
EXTRA = ("backbone", "samples", "machine", "versions")  # further columns of rows.csv, the same on every row
NEEDED = ("label", "steps", "seed", "metric", "value")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One measure of one method at one step count. ``made_for``: the student's contract names this step count."""

    label: str
    method: str
    steps: int
    nfe: float
    guidance: float
    sampler: str
    made_for: bool
    metric: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Row(Measured):
    """A measure under one seed of the noise; ``seed`` is None where no noise has a part."""

    seed: int | None


@contextmanager
def csv_file(
    path: Path, record: type, further: Sequence[str] = (), none: str = "n/a"
) -> Iterator[Callable[[Any, dict[str, Any]], None]]:
    """Open a CSV file for dataclasses. The function that it gives writes one, with values of ``further`` columns.

    Every row is flushed, so that a process that is killed leaves what it wrote. Booleans become yes and no.

    Args:
        record: the dataclass whose fields are the columns.
        further: columns after those.
        none: stands for None.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*(f.name for f in fields(record)), *further], lineterminator="\n")
        writer.writeheader()

        def write(one: Any, extra: dict[str, Any]) -> None:
            writer.writerow({name: _text(value, none) for name, value in {**asdict(one), **extra}.items()})
            file.flush()

        yield write


def _text(value: Any, none: str) -> Any:
    if value is None:
        return none
    return yes_or_no(value) if isinstance(value, bool) else value


def yes_or_no(value: bool | None) -> str:
    """A truth value as the files have it."""
    return "n/a" if value is None else "yes" if value else "no"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of an earlier ``rows.csv``, as text but for ``steps`` and ``value``. Only ``NEEDED`` must be there.

    Raises:
        FewstepError: for a file that is missing, no CSV, empty, without a needed column, or with text for a number.
    """
    key, accepted = f"--compare: {str(path)!r}", f"accepted: {ROWS} of an earlier bench"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            columns, rows = list(reader.fieldnames or ()), list[dict[str, Any]](reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else f"is no CSV ({error})"
        raise FewstepError(f"{key}: {reason}; {accepted}") from None
    missing = [name for name in NEEDED if name not in columns]
    if missing:
        hints = "".join(f"; {near!r} instead of {name!r}?" for name in missing if (near := nearest(name, columns)))
        has = ", ".join(columns) or "none, the file is empty"
        raise FewstepError(f"{key}: columns {', '.join(missing)} are missing (it has: {has}){hints}; {accepted}")
    if not rows:
        raise FewstepError(f"{key}: holds no rows; {accepted}")
    for number, row in enumerate(rows, 2):
        for name, kind in (("steps", int), ("value", float)):
            try:
                row[name] = kind(row[name])
            except (TypeError, ValueError):
                raise FewstepError(f"{key}, line {number}: {name} is {row[name]!r}; accepted: a number") from None
    return rows
