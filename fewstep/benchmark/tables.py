"""The result as two tables, quality and time a sample, shown by rich or written as Markdown and HTML."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

from rich import box
from rich.table import Table
from rich.text import Text

from fewstep.benchmark.entrants import RESERVED, TEACHER, UNDISTILLED
from fewstep.benchmark.rows import GAP, NON_FINITE, SECONDS
from fewstep.benchmark.summary import Line, is_quality

Key = tuple[str, int]  # label and steps
Cells = dict[Key, dict[str, Line]]  # then by measure
LEFT = ("method", "measure", "pairing")  # columns that are flush left


class Best(str):
    """The text of the best value of its section: shown bold."""

    __slots__ = ()


@dataclass
class Grid:
    """Sections of rows of text under one header. The first ``keys`` columns name a row."""

    title: str
    header: list[str]
    keys: int = 2
    sections: list[list[list[str]]] = field(default_factory=list)

    @property
    def rows(self) -> list[list[str]]:
        """The rows of all sections."""
        return [row for section in self.sections for row in section]

    def rich(self, width: int) -> list[Table]:
        """For a console of ``width`` characters: as many tables as it takes, each with the columns that name a row."""
        return [self._table(columns) for columns in self._split(width)]

    def _split(self, width: int) -> list[list[int]]:
        """Columns of each table; a column takes its text, a blank and a divider, the table two edges."""
        needs = [2 + max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        names = list(range(self.keys))
        parts, used = [list(names)], sum(needs[: self.keys])
        for column in range(self.keys, len(self.header)):
            if used + needs[column] > width - 2 and len(parts[-1]) > self.keys:
                parts.append(list(names))
                used = sum(needs[: self.keys])
            parts[-1].append(column)
            used += needs[column]
        return parts

    def _table(self, columns: list[int]) -> Table:
        table = Table(title=self.title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for name in (self.header[column] for column in columns):
            table.add_column(name, justify="left" if name in LEFT else "right", no_wrap=True)
        for section in self.sections:
            for row in section:
                table.add_row(*(Text(row[c], "bold" if isinstance(row[c], Best) else "") for c in columns))
            table.add_section()
        return table

    def markdown(self) -> str:
        """A Markdown table; the sections follow each other."""
        marks = [":--" if name in LEFT else "--:" for name in self.header]
        lines = [self.header, marks, *([_bold(_escaped(text), text, "**", "**") for text in row] for row in self.rows)]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def html(self) -> str:
        """An HTML table."""
        head = "".join(f"<th>{escape(name)}</th>" for name in self.header)
        rows = ([f"<td>{_bold(escape(text), text, '<b>', '</b>')}</td>" for text in row] for row in self.rows)
        body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
        return f"<table><caption>{escape(self.title)}</caption><tr>{head}</tr>{body}</table>"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


def _bold(shown: str, text: str, before: str, after: str) -> str:
    return f"{before}{shown}{after}" if isinstance(text, Best) and text else shown


def quality_table(lines: Sequence[Line], headline: str, lower_is_better: frozenset[str]) -> Grid:
    """Every measure as mean and half its 95 % interval, the best of each step count bold; headline first."""
    cells, names = _by_cell(lines), measures(lines, headline)
    heads = [f"{name} {'↓' if name in lower_is_better else '↑'}" for name in names]
    grid = Grid("quality", ["method", "steps", "NFE", "guidance", *heads[:1], "gap closed", *heads[1:]])
    places = {name: _places(found[name] for found in cells.values() if name in found) for name in names}
    for index, section in enumerate(_sections(cells)):
        best = {name: _best(section, cells, name, lower_is_better) for name in names} if index else {}
        grid.sections.append([])
        for key in section:
            texts = {name: _value(cells[key].get(name), places[name]) for name in names}
            values = [Best(text) if key == best.get(name) else text for name, text in texts.items()]
            gap = _share(cells[key].get(GAP + headline))
            grid.sections[-1].append([*_head(key, cells[key]), *values[:1], gap, *values[1:]])
    return grid


def time_table(lines: Sequence[Line]) -> Grid:
    """Milliseconds a sample by part of the work, and how much faster than the teacher."""
    cells = _by_cell(lines)
    parts = list(dict.fromkeys(line.metric for line in lines if line.metric.startswith(SECONDS)))
    heads = [f"{name.removeprefix(SECONDS).replace('_', ' ')} ms" for name in parts]
    grid = Grid("time a sample", ["method", "steps", "NFE", *heads, "x flow", "x whole"])
    for section in _sections(cells):
        timed = [key for key in section if cells[key].keys() & set(parts)]
        grid.sections.append([[*_head(key, cells[key])[:3], *_times(cells[key], parts)] for key in timed])
    return grid


def measures(lines: Iterable[Line], headline: str) -> list[str]:
    """The quality measures: the headline, then the others in the order of the suite."""
    names = dict.fromkeys(line.metric for line in lines if is_quality(line.metric))
    return sorted(names, key=lambda name: name != headline)


def _by_cell(lines: Iterable[Line]) -> Cells:
    found: Cells = {}
    for line in lines:
        found.setdefault(line.cell, {})[line.metric] = line
    return found


def _sections(cells: Cells) -> list[list[Key]]:
    """The teacher and the other references first, then one section a step count."""
    fixed = [key for key in cells if key[0] in RESERVED and key[0] != UNDISTILLED]
    fixed.sort(key=lambda key: key[0] != TEACHER)
    steps = sorted({key[1] for key in cells if key not in fixed})
    return [fixed, *([key for key in cells if key[1] == n and key not in fixed] for n in steps)]


def _head(key: Key, found: dict[str, Line]) -> list[str]:
    line = next(iter(found.values()))
    if not key[1]:
        return [key[0], "", "", ""]
    broken = "!" if NON_FINITE in found else ""
    return [key[0] + broken, f"{key[1]}{'' if line.made_for else '*'}", f"{line.nfe:g}", f"{line.guidance:g}"]


def _times(found: dict[str, Line], parts: Sequence[str]) -> list[str]:
    times = [_milliseconds(found[name].value) if name in found else "" for name in parts]
    return [*times, *(f"{found[n].value:.3g}" if n in found else "" for n in ("speedup_flow", "speedup_total"))]


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g}" if seconds >= 1e-6 or not seconds else "<0.001"


def _places(lines: Iterable[Line]) -> int:
    """Decimals that leave the largest value of a column four digits."""
    largest = max((abs(line.value) for line in lines if math.isfinite(line.value)), default=0.0)
    return min(max(3 - math.floor(math.log10(largest)), 0), 6) if largest > 0 else 1


def _value(line: Line | None, places: int) -> str:
    if line is None:
        return ""
    spread = "n/a" if line.half is None else f"{line.half:.{places}f}"
    return f"{line.value:.{places}f} ±{spread}"


def _share(line: Line | None) -> str:
    if line is None:
        return ""
    return f"{100 * line.value:.0f} % ±{'n/a' if line.half is None else f'{100 * line.half:.0f}'}"


def _best(section: Sequence[Key], cells: Cells, name: str, lower_is_better: frozenset[str]) -> Key | None:
    sign = 1 if name in lower_is_better else -1
    values = {key: sign * cells[key][name].value for key in section if name in cells[key]}
    finite = {key: value for key, value in values.items() if math.isfinite(value)}
    return min(finite, key=lambda key: finite[key]) if len(finite) > 1 else None
