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
    """Sections of rows under one header; ``left`` names the columns that are flush left."""

    title: str
    header: Sequence[str]
    left: frozenset[str]
    sections: list[list[list[Cell]]] = field(default_factory=list)

    def rich(self) -> Table:
        """For a console. Cells break at blanks where the console is narrow."""
        table = Table(title=self.title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for name in self.header:
            table.add_column(name, justify="left" if name in self.left else "right")
        for section in self.sections:
            for row in section:
                table.add_row(*(Text(cell.text, "bold" if cell.best else "") for cell in row))
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
