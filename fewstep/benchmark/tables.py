"""The result as two tables, quality and time a sample: for the console (rich), as Markdown and as HTML."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import cast

from rich import box
from rich.table import Table
from rich.text import Text

from fewstep.benchmark.entrants import RESERVED, TEACHER, UNDISTILLED
from fewstep.benchmark.rows import GAP, NON_FINITE, SECONDS, Line, is_quality
from fewstep.benchmark.summary import Key, by_cell

Cells = Mapping[Key, Mapping[str, Line]]  # by label and steps, then by measure
LEFT = ("method", "measure", "pairing")  # columns that are flush left


def new_table(title: str, header: Iterable[str]) -> Table:
    """A table without rows. A narrow console folds its cells. Rows are of ``Text``; bold marks the best value."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in header:
        table.add_column(name, justify="left" if name in LEFT else "right", overflow="fold")
    return table


def markdown(table: Table) -> str:
    """A Markdown table; the sections follow each other."""
    marks = [":--" if column.justify == "left" else "--:" for column in table.columns]
    rows = _texts(table, lambda text: text.replace("|", "\\|").replace("*", "\\*"), "**", "**")
    lines = [[str(column.header) for column in table.columns], marks, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def html(table: Table) -> str:
    """An HTML table."""
    head = "".join(f"<th>{escape(str(column.header))}</th>" for column in table.columns)
    rows = ("".join(f"<td>{text}</td>" for text in row) for row in _texts(table, escape, "<b>", "</b>"))
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table><caption>{escape(str(table.title))}</caption><tr>{head}</tr>{body}</table>"


def _texts(table: Table, escaped: Callable[[str], str], before: str, after: str) -> list[list[str]]:
    """The rows, with marks around what is bold."""
    columns = [cast("Iterable[Text]", column.cells) for column in table.columns]
    texts = [[(escaped(cell.plain), cell.style == "bold") for cell in row] for row in zip(*columns, strict=True)]
    return [[f"{before}{text}{after}" if bold else text for text, bold in row] for row in texts]


def quality_table(lines: Sequence[Line], headline: str, lower_is_better: frozenset[str]) -> Table:
    """Every measure as mean and half its 95 % interval, the best of each step count bold; headline first."""
    cells, names = by_cell(lines), measures(lines, headline)
    heads = [f"{name} {'↓' if name in lower_is_better else '↑'}" for name in names]
    table = new_table("quality", ["method", "steps", "NFE", "guidance", *heads[:1], "gap closed", *heads[1:]])
    places = {name: _places(found[name].value for found in cells.values() if name in found) for name in names}
    for index, section in enumerate(_sections(cells)):
        best = {name: _best(section, name, lower_is_better) for name in names} if index else {}
        for key, found in section.items():
            values = [
                Text(_value(found.get(name), places[name]), "bold" if best.get(name) == key else "") for name in names
            ]
            head = map(Text, _head(found))
            table.add_row(*head, *values[:1], Text(_value(found.get(GAP + headline), 0, 100, " %")), *values[1:])
        table.add_section()
    return table


def time_table(lines: Sequence[Line]) -> Table:
    """Milliseconds a sample by part of the work, and how much faster than the teacher."""
    parts = list(dict.fromkeys(line.metric for line in lines if line.metric.startswith(SECONDS)))
    heads = [f"{name.removeprefix(SECONDS).replace('_', ' ')} ms" for name in parts]
    table = new_table("time a sample", ["method", "steps", "NFE", *heads, "x flow", "x whole"])
    for section in _sections(by_cell(lines)):
        for found in section.values():
            if found.keys() & set(parts):
                times = [_milliseconds(found[name].value) if name in found else "" for name in parts]
                faster = [f"{found[n].value:.3g}" if n in found else "" for n in ("speedup_flow", "speedup_total")]
                table.add_row(*map(Text, (*_head(found)[:3], *times, *faster)))
        table.add_section()
    return table


def measures(lines: Iterable[Line], headline: str) -> list[str]:
    """The quality measures: the headline, then the others in the order of the suite."""
    names = dict.fromkeys(line.metric for line in lines if is_quality(line.metric))
    return sorted(names, key=lambda name: name != headline)


def _sections(cells: Cells) -> list[Cells]:
    """The teacher and the other references first, then one section a step count."""
    references = [key for key in cells if key[0] in RESERVED and key[0] != UNDISTILLED]
    others = [key for key in cells if key not in references]
    steps = sorted({key[1] for key in others})
    keys = [sorted(references, key=lambda key: key[0] != TEACHER), *([k for k in others if k[1] == n] for n in steps)]
    return [{key: cells[key] for key in section} for section in keys]


def _head(found: Mapping[str, Line]) -> list[str]:
    line = next(iter(found.values()))
    if not line.steps:
        return [line.label, "", "", ""]
    broken = "!" if NON_FINITE in found else ""
    return [line.label + broken, f"{line.steps}{'' if line.made_for else '*'}", f"{line.nfe:g}", f"{line.guidance:g}"]


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g}" if seconds >= 1e-6 or not seconds else "<0.001"


def _places(values: Iterable[float]) -> int:
    """Decimals that leave the largest value of a column four digits."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return min(max(3 - math.floor(math.log10(largest)), 0), 6) if largest > 0 else 1


def _value(line: Line | None, places: int, scale: float = 1, unit: str = "") -> str:
    if line is None:
        return ""
    spread = "n/a" if line.half is None else f"{scale * line.half:.{places}f}"
    return f"{scale * line.value:.{places}f}{unit} ±{spread}"


def _best(section: Cells, name: str, lower_is_better: frozenset[str]) -> Key | None:
    """The cell with the best finite value; None where there are fewer than two."""
    sign = 1 if name in lower_is_better else -1
    values = {key: sign * found[name].value for key, found in section.items() if name in found}
    finite = {key: value for key, value in values.items() if math.isfinite(value)}
    return min(finite, key=lambda key: finite[key]) if len(finite) > 1 else None
