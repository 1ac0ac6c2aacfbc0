"""The result as two tables: quality, and time by stage."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from fewstep.bench.entrants import RESERVED, TEACHER, UNDISTILLED
from fewstep.bench.grid import Cell, Grid
from fewstep.bench.rows import GAP, NON_FINITE, SECONDS
from fewstep.bench.summary import Line, is_quality

LEFT = frozenset({"method"})
Cells = dict[tuple[str, int], dict[str, Line]]


def by_cell(lines: Iterable[Line]) -> Cells:
    """Lines by (label, steps), then by measure."""
    found: Cells = {}
    for line in lines:
        found.setdefault(line.cell, {})[line.metric] = line
    return found


def measures(lines: Iterable[Line], headline: str) -> list[str]:
    """The quality measures: the headline, then the others in the order of the suite."""
    names = dict.fromkeys(line.metric for line in lines if is_quality(line.metric))
    return sorted(names, key=lambda name: name != headline)


def sections(cells: Cells) -> list[list[tuple[str, int]]]:
    """The rows that every result is read against first, then one section a step count."""
    fixed = [key for key in cells if key[0] in RESERVED and key[0] != UNDISTILLED]
    fixed.sort(key=lambda key: key[0] != TEACHER)
    steps = sorted({key[1] for key in cells if key not in fixed})
    return [fixed, *([key for key in cells if key[1] == n and key not in fixed] for n in steps)]


def quality_table(lines: Sequence[Line], headline: str, lower_is_better: frozenset[str]) -> Grid:
    """Every measure as mean and half its 95 % interval, the best of each step count bold; headline first."""
    cells, names = by_cell(lines), measures(lines, headline)
    arrows = [f"{name} {'↓' if name in lower_is_better else '↑'}" for name in names]
    header = ["method", "steps", "NFE", "guidance", arrows[0], "gap closed", *arrows[1:]]
    grid = Grid("quality", header, LEFT)
    places = {name: _places(found[name] for found in cells.values() if name in found) for name in names}
    for index, section in enumerate(sections(cells)):
        best = {name: _best(section, cells, name, lower_is_better) for name in names} if index else {}
        grid.sections.append([])
        for key in section:
            values = [Cell(_value(cells[key].get(n), places[n]), key == best.get(n)) for n in names]
            gap = Cell(_share(cells[key].get(GAP + headline)))
            grid.sections[-1].append([*map(Cell, _head(key, cells[key])), values[0], gap, *values[1:]])
    return grid


def time_table(lines: Sequence[Line]) -> Grid:
    """Milliseconds a sample by stage, and how much faster than the teacher."""
    cells = by_cell(lines)
    parts = list(dict.fromkeys(line.metric for line in lines if line.metric.startswith(SECONDS)))
    header = ["method", "steps", "NFE", *(f"{_words(name)} ms" for name in parts), "x flow", "x whole"]
    grid = Grid("time a sample", header, LEFT)
    for section in sections(cells):
        timed = [key for key in section if cells[key].keys() & set(parts)]
        rows = [[Cell(text) for text in (*_head(key, cells[key])[:3], *_times(cells[key], parts))] for key in timed]
        if rows:
            grid.sections.append(rows)
    return grid


def _head(key: tuple[str, int], found: dict[str, Line]) -> list[str]:
    line = next(iter(found.values()))
    if not key[1]:
        return [key[0], "", "", ""]
    broken = "!" if NON_FINITE in found else ""
    return [key[0] + broken, f"{key[1]}{'' if line.made_for else '*'}", f"{line.nfe:g}", f"{line.guidance:g}"]


def _words(part: str) -> str:
    """``seconds_flow_ss`` as the head of a column: ``flow ss``."""
    return part.removeprefix(SECONDS).replace("_", " ")


def _times(found: dict[str, Line], parts: Sequence[str]) -> list[str]:
    stages = [_milliseconds(found[name].value) for name in parts]
    return [*stages, *(f"{found[n].value:.3g}" if n in found else "" for n in ("speedup_flow", "speedup_total"))]


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


def _best(
    section: Sequence[tuple[str, int]], cells: Cells, name: str, lower_is_better: frozenset[str]
) -> tuple[str, int] | None:
    sign = 1 if name in lower_is_better else -1
    values = {key: sign * cells[key][name].value for key in section if name in cells[key]}
    finite = {key: value for key, value in values.items() if math.isfinite(value)}
    return min(finite, key=lambda key: finite[key]) if len(finite) > 1 else None
