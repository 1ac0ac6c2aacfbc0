"""Measurements as rows: one CSV row each, written as they are made and read back by ``--compare``."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fewstep.errors import FewstepError, nearest

ROWS = "rows.csv"
SECONDS, FLOW = "seconds_", "seconds_flow"  # of a part of the work, and of sampling: of a stage, seconds_flow_NAME
GAP = "gap_closed/"
NON_FINITE = "non_finite"


@dataclass(frozen=True)
class Row:
    """One number. ``seed`` is None for what no seed changes; ``made_for``: the contract names this step count."""

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


KEYS = tuple(f.name for f in fields(Row))
EXTRA = ("backbone", "samples", "machine", "versions")
NEEDED = ("label", "steps", "seed", "metric", "value")


class RowFile:
    """``rows.csv``, flushed row by row: a bench that is killed leaves what it measured.

    Args:
        extra: backbone, samples, machine and versions, the same on every row.
    """

    def __init__(self, folder: Path, extra: dict[str, Any]) -> None:
        self.rows: list[Row] = []
        self._extra = extra
        self._path = folder / ROWS
        self._file = self._path.open("w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, (*KEYS, *EXTRA), lineterminator="\n")
        self._writer.writeheader()

    def add(self, rows: Iterable[Row]) -> None:
        """Keep these rows and write each as it comes."""
        for row in rows:
            self.rows.append(row)
            values = {**asdict(row), **self._extra}
            values["seed"] = "" if row.seed is None else row.seed
            values["made_for"] = "yes" if row.made_for else "no"
            self._writer.writerow(values)
            self._file.flush()

    def close(self) -> None:
        """Close it; a bench that measured nothing leaves no file, nor its folder."""
        self._file.close()
        if not self.rows:
            self._path.unlink()
            with suppress(OSError):
                self._path.parent.rmdir()


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of an earlier ``rows.csv``; columns that only newer versions write may be missing.

    Raises:
        FewstepError: for a file that is missing, no CSV, empty, without the needed columns, or with a value that is
            no number.
    """
    key = f"--compare: {str(path)!r}"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            columns, rows = list(reader.fieldnames or ()), list(reader)
    except OSError as error:
        raise FewstepError(f"{key}: {error.strerror or error}; accepted: {ROWS} of an earlier bench") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise FewstepError(f"{key}: is no CSV ({error}); accepted: {ROWS} of an earlier bench") from None
    missing = [name for name in NEEDED if name not in columns]
    if missing:
        raise FewstepError(_missing(key, missing, columns))
    if not rows:
        raise FewstepError(f"{key}: holds no rows; accepted: {ROWS} of an earlier bench")
    for number, row in enumerate(rows, 2):
        _check(key, number, row)
    return rows


def _missing(key: str, missing: list[str], columns: list[str]) -> str:
    near = {name: nearest(name, columns) for name in missing}
    hints = "".join(f"; {got!r} instead of {name!r}?" for name, got in near.items() if got)
    has = ", ".join(columns) if columns else "none, the file is empty"
    return (
        f"{key}: columns {', '.join(missing)} are missing (it has: {has}){hints}; accepted: {ROWS} of an earlier bench"
    )


def _check(key: str, number: int, row: dict[str, str]) -> None:
    for name, kind in (("steps", int), ("value", float)):
        try:
            kind(row[name])
        except (TypeError, ValueError):
            raise FewstepError(f"{key}, line {number}: {name} is {row[name]!r}; accepted: a number") from None
