"""A table as text cells, shown with rich or written as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich import box
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Cell:
    """A text, bold where it is the best of its kind."""

    text: str
    best: bool = False


@dataclass
class Grid:
    """Sections of rows under one header; ``left`` names the columns that are flush left, ``keys`` how many name the
    row."""

    title: str
    header: Sequence[str]
    left: frozenset[str]
    keys: int = 2
    sections: list[list[list[Cell]]] = field(default_factory=list)

    def rich(self, width: int) -> list[Table]:
        """For a console of ``width`` characters: as many tables as it takes, each with the first ``keys`` columns."""
        return [self._table(columns) for columns in self._parts(width)]

    def _parts(self, width: int) -> list[list[int]]:
        """Columns of each table; a column takes its text, a blank and a divider, the table two edges."""
        rows = [[Cell(name) for name in self.header], *(row for section in self.sections for row in section)]
        needs = [2 + max(len(row[column].text) for row in rows) for column in range(len(self.header))]
        parts, used = [list(range(self.keys))], sum(needs[: self.keys])
        for column in range(self.keys, len(self.header)):
            if used + needs[column] > width - 2 and len(parts[-1]) > self.keys:
                parts.append(list(range(self.keys)))
                used = sum(needs[: self.keys])
            parts[-1].append(column)
            used += needs[column]
        return parts

    def _table(self, columns: list[int]) -> Table:
        table = Table(title=self.title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column in columns:
            name = self.header[column]
            table.add_column(name, justify="left" if name in self.left else "right", no_wrap=True)
        for section in self.sections:
            for row in section:
                table.add_row(*(Text(row[c].text, "bold" if row[c].best else "") for c in columns))
            table.add_section()
        return table

    def markdown(self) -> str:
        """For a file; the sections follow each other."""
        marks = [":--" if name in self.left else "--:" for name in self.header]
        lines = [self.header, marks, *([_mark(cell) for cell in row] for rows in self.sections for row in rows)]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _mark(cell: Cell) -> str:
    text = cell.text.replace("|", "\\|").replace("*", "\\*")
    return f"**{text}**" if cell.best and text else text
