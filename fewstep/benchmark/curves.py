"""The data of a page's charts, as JSON: quality against steps, time and training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from fewstep.benchmark.chart import LEVELS, Style, styles_of
from fewstep.benchmark.entrants import RESERVED, TEACHER
from fewstep.benchmark.rows import FLOW, Line
from fewstep.benchmark.summary import by_cell, seconds
from fewstep.benchmark.tables import measures
from fewstep.console import number_of
from fewstep.core.suite import Suite

WIDTH = 2.4  # of the lines, the unit of dash lengths
NAMED = {"-": (), "--": (3.7, 1.6), "-.": (6.4, 1.6, 1, 1.6), ":": (1, 1.65)}  # dashes of matplotlib's styles
Cell = Mapping[str, Line]  # by measure


def curves(lines: Sequence[Line], suite: Suite) -> dict[str, Any]:
    """Measures; series of points for each label and for each method with several budgets; levels of references."""
    cells, styles = by_cell(lines), styles_of(lines)
    named: dict[str, list[tuple[int, Cell]]] = {}
    for (label, steps), measured in cells.items():
        named.setdefault(label, []).append((steps, measured))
    names = measures(lines, suite.headline)
    seen = [name for name in dict.fromkeys((suite.headline, *suite.charts, *names)) if name in names]
    series = [
        {"label": label, **_style(styles[label]), "points": [_point(label, *cell) for cell in named[label]]}
        for label in styles
        if label in named
    ]
    levels = []
    for label, dashes in LEVELS.items():
        if label in named:
            steps, cell = named[label][0]
            text = f"{label}, {number_of(steps, 'step')}" if label == TEACHER else label
            levels.append({"label": text, "values": _values(cell), "dashes": _dashes(dashes)})
    shown = [
        {
            "name": name,
            "words": suite.in_words(name),
            "better": "lower" if name in suite.lower_is_better else "higher",
            "signed": name in suite.signed,
        }
        for name in seen
    ]
    several = any(line.half is not None for line in lines)
    return {
        "measures": shown,
        "series": {"cells": series, "budget": _by_budget(cells, styles)},
        "levels": levels,
        "interval": "Bands and bars are 95 % intervals." if several else "A single seed has no intervals.",
    }


def _by_budget(cells: Mapping[tuple[str, int], Cell], styles: Mapping[str, Style]) -> list[dict[str, Any]]:
    """One line per method through its students of different budgets, each in its fewest steps."""
    by_method: dict[str, dict[str, tuple[int, Cell]]] = {}
    for (label, steps), cell in sorted(cells.items(), key=lambda item: item[0][1]):
        line = next(iter(cell.values()))
        if label not in RESERVED and _budget(cell):
            by_method.setdefault(line.method, {}).setdefault(label, (steps, cell))
    return [
        {
            "label": method,
            **_style(styles[next(iter(students))]),
            "points": [_point(label, *cell) for label, cell in students.items()],
        }
        for method, students in by_method.items()
        if len({_budget(cell) for _, cell in students.values()}) > 1
    ]


def _point(label: str, steps: int, cell: Cell) -> dict[str, Any]:
    return {
        "name": f"{label}, {number_of(steps, 'step')}",
        "steps": steps,
        "milliseconds": 1000 * seconds(cell.values(), FLOW),
        "budget": _budget(cell),
        "values": _values(cell),
    }


def _budget(cell: Cell) -> float:
    """Evaluations that training took; 0 for anything but a student."""
    return next(iter(cell.values())).evaluations or 0.0


def _values(cell: Cell) -> dict[str, tuple[float, float, float]]:
    """Value and ends of the interval of every measure that is a number."""
    halves = {name: line.half or 0.0 for name, line in cell.items()}
    values = {name: (line.value, line.value - halves[name], line.value + halves[name]) for name, line in cell.items()}
    return {name: ends for name, ends in values.items() if all(map(isfinite, ends))}


def _style(style: Style) -> dict[str, str]:
    colour, _, dashes = style
    return {"colour": colour, "dashes": _dashes(dashes)}


def _dashes(dashes: Any) -> str:
    """A line style of matplotlib as an SVG dash array."""
    lengths = NAMED[dashes] if isinstance(dashes, str) else dashes[1]
    return " ".join(f"{WIDTH * length:g}" for length in lengths)
