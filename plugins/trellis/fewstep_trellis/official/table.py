"""``metadata.csv`` of a data root: one row an object, values as text, read by column.

An empty cell is a missing value, which passes no filter. (Upstream, one empty cell in a boolean column ends the run.)
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fewstep.errors import FewstepError, invalid, unknown
from fewstep.texts import read_text

NAME = "metadata.csv"
ID = "sha256"
FLAGS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
MISSING = {"", "nan", "none", "null", "na", "n/a", "<na>"}


@dataclass(frozen=True)
class Row:
    """One object of a root. ``line`` is its place in the table's file."""

    root: Path
    line: int
    cells: Mapping[str, str]

    @property
    def sha256(self) -> str:
        return self.cells[ID]

    def text(self, column: str) -> str | None:
        """A cell's text, or None if it is empty.

        Raises:
            FewstepError: the table has no such column; names the nearest that it has.
        """
        if column not in self.cells:
            raise unknown(f"column of {self.root / NAME}", column, self.cells)
        cell = self.cells[column].strip()
        return None if cell.lower() in MISSING else cell

    def flag(self, column: str) -> bool | None:
        """A true or false.

        Raises:
            FewstepError: for another word, naming the line.
        """
        cell = self.text(column)
        if cell is not None and cell.lower() not in FLAGS:
            raise self._bad(column, cell, "True, False or nothing")
        return None if cell is None else FLAGS[cell.lower()]

    def number(self, column: str) -> float | None:
        """A finite number.

        Raises:
            FewstepError: for anything else, naming the line.
        """
        cell = self.text(column)
        try:
            value = None if cell is None else float(cell)
        except ValueError:
            value = math.inf
        if value is not None and not math.isfinite(value):
            raise self._bad(column, cell, "a number or nothing")
        return value

    def _bad(self, column: str, got: object, accepted: str) -> FewstepError:
        return invalid(f"{self.root / NAME}, line {self.line}, {column}", got, accepted)


def read_table(root: Path) -> list[Row]:
    """The rows of a root's table, in order.

    Raises:
        FewstepError: no such folder or file, a file that is not such a table, an identifier that cannot name a file.
    """
    path = root / NAME
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""), restval="")
        rows = [Row(root, reader.line_num, cells) for cells in reader]
    except (FewstepError, csv.Error) as error:
        raise invalid("data.roots", str(root), f"a folder with a readable {NAME} ({error})") from None
    for row in rows:
        _check(row)
    return rows


def check_roots(roots: Sequence[Path]) -> None:
    """Raise FewstepError if there are no roots, or one is not a data root."""
    if not roots:
        raise invalid("data.roots", "", f"folders with a {NAME}, joined by commas: data.roots=FOLDER,FOLDER")
    for root in roots:
        if not (root / NAME).is_file():
            found = "this one has none" if root.is_dir() else "this is not a folder"
            if (root / "manifest.json").is_file():  # a set of fewstep data prepare, which describes itself
                found += f"; {root / 'manifest.json'} says what this prepared set holds"
            raise invalid("data.roots", str(root), f"folders with a {NAME}, joined by commas; {found}")


def _check(row: Row) -> None:
    if None in row.cells:
        raise FewstepError(f"{row.root / NAME}, line {row.line}: more cells than the header has")
    if ID not in row.cells:
        raise unknown(f"column of {row.root / NAME}", ID, row.cells)
    name = row.cells[ID]
    if name in ("", ".", "..") or "/" in name or "\\" in name:
        raise invalid(f"{row.root / NAME}, line {row.line}, {ID}", name, "an identifier that can name a file")
