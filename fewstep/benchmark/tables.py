"""Tables of quality and of time per sample: for the console (rich), as Markdown and as HTML."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import TypeVar, cast

from rich import box
from rich.table import Table
from rich.text import Text

from fewstep.benchmark.entrants import RESERVED, TEACHER, UNDISTILLED
from fewstep.benchmark.rows import GAP, NON_FINITE, SECONDS, Line, is_quality
from fewstep.benchmark.summary import Key, by_cell
from fewstep.words import decimals, fixed, markdown_escaped, number

T = TypeVar("T")
Cells = Mapping[Key, Mapping[str, Line]]  # by label and steps, then by measure
LEFT = ("method", "measure", "pairing", "with its NFE", "with its time")  # left-aligned columns
FARTHEST = (-1.0, 2.0)  # shares of the gap beyond these are not shown as numbers
WIDE = 0.5  # if half the interval of a share is larger, the interval is wider than the gap


def new_table(title: str, header: Iterable[str]) -> Table:
    """A table without rows. A narrow console folds its cells. Cells are ``Text``; bold marks the best value."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in header:
        table.add_column(name, justify="left" if name in LEFT else "right", overflow="fold")
    return table


def markdown(table: Table) -> str:
    """A Markdown table; the sections follow each other."""
    marks = [":--" if column.justify == "left" else "--:" for column in table.columns]
    rows = _texts(table, markdown_escaped, "**", "**")
    lines = [[markdown_escaped(str(column.header)) for column in table.columns], marks, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def html(table: Table) -> str:
    """An HTML table."""
    head = "".join(f"<th>{escape(str(column.header))}</th>" for column in table.columns)
    rows = ("".join(f"<td>{text}</td>" for text in row) for row in _texts(table, escape, "<b>", "</b>"))
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table><caption>{escape(str(table.title))}</caption><tr>{head}</tr>{body}</table>"


def _texts(table: Table, escaped: Callable[[str], str], before: str, after: str) -> list[list[str]]:
    """The rows as escaped texts, with marks around bold ones."""
    columns = [cast("Iterable[Text]", column.cells) for column in table.columns]
    texts = [[(escaped(cell.plain), cell.style == "bold") for cell in row] for row in zip(*columns, strict=True)]
    return [[f"{before}{text}{after}" if bold else text for text, bold in row] for row in texts]


def quality_table(lines: Sequence[Line], headline: str, lower_is_better: frozenset[str]) -> Table:
    """Every measure as its mean and half its 95 % interval, headline first; the best of each step count is bold."""
    cells, names = by_cell(lines), measures(lines, headline)
    heads = [f"{name} {'↓' if name in lower_is_better else '↑'}" for name in names]
    broken = ["not finite"] if any(NON_FINITE in cell for cell in cells.values()) else []
    table = new_table("quality", ["method", "steps", "NFE", "guidance", *heads[:1], "gap closed", *heads[1:], *broken])
    places = {name: places_of([cell[name].value for cell in cells.values() if name in cell]) for name in names}
    for index, section in enumerate(sections(cells)):
        best = {name: _best(section, name, lower_is_better) for name in names} if index else {}
        for key, cell in section.items():
            values = [
                Text(mean(cell.get(name), places[name]), "bold" if best.get(name) == key else "") for name in names
            ]
            first = map(Text, row_head(cell))
            shares = [Text(f"{fixed(100 * cell[NON_FINITE].value, 0)} %" if NON_FINITE in cell else "") for _ in broken]
            table.add_row(*first, *values[:1], Text(share(cell.get(GAP + headline))), *values[1:], *shares)
        table.add_section()
    return table


def time_table(lines: Sequence[Line]) -> Table:
    """Milliseconds per sample by part of the work, and the speed-up over the teacher."""
    parts = list(dict.fromkeys(line.metric for line in lines if line.metric.startswith(SECONDS)))
    heads = [f"{name.removeprefix(SECONDS).replace('_', ' ')} ms" for name in parts]
    table = new_table("time per sample", ["method", "steps", "NFE", *heads, "x flow", "x whole"])
    for section in sections(by_cell(lines)):
        for cell in section.values():
            if cell.keys() & set(parts):
                times = [milliseconds(cell[name].value) if name in cell else "" for name in parts]
                faster = [number(cell[n].value, 2) if n in cell else "" for n in ("speedup_flow", "speedup_total")]
                table.add_row(*map(Text, (*row_head(cell)[:3], *times, *faster)))
        table.add_section()
    return table


def measures(lines: Iterable[Line], headline: str) -> list[str]:
    """The quality measures: the headline, then the others in the order of the suite. Medians and percentiles, whose
    names have a "/", are left out."""
    names = dict.fromkeys(line.metric for line in lines if is_quality(line.metric) and "/" not in line.metric)
    return sorted(names, key=lambda name: name != headline)


def sections(cells: Mapping[Key, T]) -> list[dict[Key, T]]:
    """The teacher and the other references first, then one section per step count."""
    references = [key for key in cells if key[0] in RESERVED and key[0] != UNDISTILLED]
    others = [key for key in cells if key not in references]
    steps = sorted({key[1] for key in others})
    keys = [sorted(references, key=lambda key: key[0] != TEACHER), *([k for k in others if k[1] == n] for n in steps)]
    return [{key: cells[key] for key in section} for section in keys]


def row_head(cell: Mapping[str, Line]) -> list[str]:
    """Label, steps, NFE and guidance of a cell."""
    line = next(iter(cell.values()))
    if not line.steps:
        return [line.label, "", "", ""]
    broken = "!" if NON_FINITE in cell else ""
    return [line.label + broken, f"{line.steps}{'' if line.made_for else '*'}", f"{line.nfe:g}", f"{line.guidance:g}"]


def milliseconds(seconds: float) -> str:
    """A time in milliseconds, without the unit."""
    return number(1000 * seconds) if seconds >= 1e-6 or not seconds else "<0.001"


def places_of(values: Sequence[float]) -> int:
    """The number of decimals with which the largest value of a column has three digits."""
    return decimals(max((abs(value) for value in values if math.isfinite(value)), default=0.0), 3)


def mean(line: Line | None, places: int | None = None) -> str:
    """``275 ±18``, or without ± if there is no interval. The interval has two digits unless ``places`` is given."""
    if line is None:
        return ""
    if places is None:
        places = min(places_of([line.value]), decimals(line.half, 2) if line.half else 6)
    if 1e-6 <= abs(line.value) < math.inf:
        places = max(places, decimals(line.value, 1))  # so that a value that is small in its column is not shown as 0
    spread = "" if line.half is None else f" ±{fixed(line.half, min(places, 6))}"
    return fixed(line.value, min(places, 6)) + spread


def signed(difference: float, half: float | None) -> str:
    """``-12.3 ±4.5``."""
    spread = "" if half is None else f" ±{number(half, 2)}"
    return f"{'+' if difference > 0 else ''}{number(difference)}{spread}"


def resolved(share: Line) -> bool:
    """Whether a share of the gap is meaningful: its interval is narrower than the gap, or does not contain 0."""
    return share.half is None or share.half <= WIDE or share.half < abs(share.value)


def share(line: Line | None) -> str:
    """``63 % ±26`` of the gap closed. Far beyond 0 and 100 % the gap is small, and only the side is shown."""
    if line is None:
        return ""
    if not resolved(line):
        return "not resolved"
    if not FARTHEST[0] <= line.value <= FARTHEST[1]:
        return "below -100 %" if line.value < 0 else "above 200 %"
    spread = "" if line.half is None else f" ±{fixed(100 * line.half, 0)}"
    return f"{fixed(100 * line.value, 0)} %{spread}"


def _best(section: Cells, name: str, lower_is_better: frozenset[str]) -> Key | None:
    """The cell with the best finite value; None if there are fewer than two."""
    sign = 1 if name in lower_is_better else -1
    values = {key: sign * cell[name].value for key, cell in section.items() if name in cell}
    finite = {key: value for key, value in values.items() if math.isfinite(value)}
    return min(finite, key=lambda key: finite[key]) if len(finite) > 1 else None
