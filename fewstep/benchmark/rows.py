"""Measurements as rows of ``rows.csv``: written one by one while a bench runs, read back by ``--compare``."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fewstep.errors import FewstepError, nearest

ROWS = "rows.csv"
SECONDS, FLOW = "seconds_", "seconds_flow"  # how the names of all times begin, and those of sampling
GAP = "gap_closed/"
NON_FINITE = "non_finite"
EXTRA = ("backbone", "samples", "machine", "versions")  # further columns, the same on every row
NEEDED = ("label", "steps", "seed", "metric", "value")


@dataclass(frozen=True)
class Row:
    """One number. ``seed`` is None where no seed has a part; ``made_for``: the contract names this step count."""

    label: str
    method: str
    steps: int
    seed: int | None
    nfe: float
    guidance: float
    sampler: str
    made_for: bool
    metric: str
    value: float


class RowFile:
    """``rows.csv`` in ``folder``, flushed row by row. Without any row it leaves no file, and no empty folder.

    Args:
        extra: the values of the columns ``EXTRA``.
    """

    def __init__(self, folder: Path, extra: dict[str, Any]) -> None:
        self.rows: list[Row] = []
        self._extra, self._path = extra, folder / ROWS
        self._file = self._path.open("w", newline="", encoding="utf-8")
        names = [f.name for f in fields(Row)]
        self._writer = csv.DictWriter(self._file, [*names, *EXTRA], lineterminator="\n")
        self._writer.writeheader()

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        if not self.rows:
            self._path.unlink()
            with suppress(OSError):
                self._path.parent.rmdir()

    def add(self, rows: Iterable[Row]) -> None:
        """Write each row as it comes, and keep it."""
        for row in rows:
            self.rows.append(row)
            values = {**asdict(row), "seed": seed_text(row), "made_for": "yes" if row.made_for else "no"}
            self._writer.writerow({**values, **self._extra})
            self._file.flush()


def seed_text(row: Row) -> str:
    """The seed as ``rows.csv`` has it: empty where there is none."""
    return "" if row.seed is None else str(row.seed)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of an earlier ``rows.csv``. Columns other than ``NEEDED`` may be missing.

    Raises:
        FewstepError: for a file that is missing, no CSV, empty, without a needed column, or with text for a number.
    """
    key, accepted = f"--compare: {str(path)!r}", f"accepted: {ROWS} of an earlier bench"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            columns, rows = list(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else f"is no CSV ({error})"
        raise FewstepError(f"{key}: {reason}; {accepted}") from None
    missing = [name for name in NEEDED if name not in columns]
    if missing:
        near = {name: nearest(name, columns) for name in missing}
        hints = "".join(f"; {got!r} instead of {name!r}?" for name, got in near.items() if got)
        has = ", ".join(columns) or "none, the file is empty"
        raise FewstepError(f"{key}: columns {', '.join(missing)} are missing (it has: {has}){hints}; {accepted}")
    if not rows:
        raise FewstepError(f"{key}: holds no rows; {accepted}")
    for number, row in enumerate(rows, 2):
        for name, kind in (("steps", int), ("value", float)):
            try:
                kind(row[name])
            except (TypeError, ValueError):
                raise FewstepError(f"{key}, line {number}: {name} is {row[name]!r}; accepted: a number") from None
    return rows
