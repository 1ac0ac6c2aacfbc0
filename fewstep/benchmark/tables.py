"""The result as two tables, quality and time a sample: for the console (rich), as Markdown and as HTML."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any, cast

from rich import box
from rich.table import Table
from rich.text import Text

from fewstep.benchmark.differences import NFE, TIME, Difference, Equal
from fewstep.benchmark.entrants import RESERVED, TEACHER, UNDISTILLED
from fewstep.benchmark.rows import FLOW, GAP, NON_FINITE, SECONDS, Line, is_quality
from fewstep.benchmark.summary import Key, by_cell, seconds
from fewstep.console import number_of
from fewstep.core.suite import Suite
from fewstep.words import decimals, fixed, markdown_escaped, number

Cells = Mapping[Key, Mapping[str, Line]]  # by label and steps, then by measure
LEFT = ("method", "measure", "pairing", "with its NFE", "with its time")  # columns that are flush left
FARTHEST = (-1.0, 2.0)  # shares of the gap that are told as numbers
LEVEL = 0.05  # of adjusted p-values
WIDE = 0.5  # half the interval of a share: from here on it is wider than the gap itself


def new_table(title: str, header: Iterable[str]) -> Table:
    """A table without rows. A narrow console folds its cells. Rows are of ``Text``; bold marks the best value."""
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
    """The rows, with marks around what is bold."""
    columns = [cast("Iterable[Text]", column.cells) for column in table.columns]
    texts = [[(escaped(cell.plain), cell.style == "bold") for cell in row] for row in zip(*columns, strict=True)]
    return [[f"{before}{text}{after}" if bold else text for text, bold in row] for row in texts]


def quality_table(lines: Sequence[Line], headline: str, lower_is_better: frozenset[str]) -> Table:
    """Every measure as mean and half its 95 % interval, the best of each step count bold; headline first."""
    cells, names = by_cell(lines), measures(lines, headline)
    heads = [f"{name} {'↓' if name in lower_is_better else '↑'}" for name in names]
    broken = ["not finite"] if any(NON_FINITE in found for found in cells.values()) else []
    table = new_table("quality", ["method", "steps", "NFE", "guidance", *heads[:1], "gap closed", *heads[1:], *broken])
    places = {name: _places([found[name].value for found in cells.values() if name in found]) for name in names}
    for index, section in enumerate(_sections(cells)):
        best = {name: _best(section, name, lower_is_better) for name in names} if index else {}
        for key, found in section.items():
            values = [
                Text(mean(found.get(name), places[name]), "bold" if best.get(name) == key else "") for name in names
            ]
            head = map(Text, _head(found))
            shares = [
                Text(f"{fixed(100 * found[NON_FINITE].value, 0)} %" if NON_FINITE in found else "") for _ in broken
            ]
            table.add_row(*head, *values[:1], Text(share(found.get(GAP + headline))), *values[1:], *shares)
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
                times = [milliseconds(found[name].value) if name in found else "" for name in parts]
                faster = [number(found[n].value, 2) if n in found else "" for n in ("speedup_flow", "speedup_total")]
                table.add_row(*map(Text, (*_head(found)[:3], *times, *faster)))
        table.add_section()
    return table


def difference_table(found: Sequence[Difference], suite: Suite, reference: str) -> Table | None:
    """The headline of each method minus that of the reference method and of undistilled, in as many steps; None where
    nothing is compared. Bold: better, and the adjusted p is below 0.05."""
    names = [name for name in dict.fromkeys((reference, UNDISTILLED)) if any(one.against == name for one in found)]
    heads = [(f"minus {name}", "p (Holm)", *([f"nearer than {name}"] if suite.nearness else [])) for name in names]
    cells: dict[Key, dict[str, Difference]] = {}
    for one in found:
        if one.metric == suite.headline:
            cells.setdefault((one.label, one.steps), {})[one.against] = one
    if not cells:
        return None
    table = new_table(f"differences in {suite.headline}", ["method", "steps", *(head for row in heads for head in row)])
    for steps in sorted({key[1] for key in cells}):
        for key in (key for key in cells if key[1] == steps):
            texts = [Text(key[0]), Text(str(steps))]
            for name in names:
                texts += _compared(cells[key].get(name), bool(suite.nearness))
            table.add_row(*texts)
        table.add_section()
    return table


def _compared(one: Difference | None, nearness: bool) -> list[Text]:
    if one is None:
        return [Text("")] * (2 + nearness)
    sure = one.better is True and one.p_holm is not None and one.p_holm < LEVEL
    p = "" if one.p_holm is None else p_value(one.p_holm)
    nearer = "" if one.nearer is None else f"{fixed(100 * one.nearer, 0)} %"
    nearer += "" if not nearer or one.nearer_half is None else f" ±{fixed(100 * one.nearer_half, 0)}"
    return [Text(signed(one), "bold" if sure else ""), Text(p), *([Text(nearer)] if nearness else [])]


def signed(one: Difference) -> str:
    """``-12.3 ±4.5``."""
    spread = "" if one.half is None else f" ±{number(one.half, 2)}"
    return f"{'+' if one.difference > 0 else ''}{number(one.difference)}{spread}"


def p_value(p: float) -> str:
    """Two digits, and no more zeros than anyone reads."""
    return "<0.001" if p < 0.001 else number(p, 2) if p < 0.1 else fixed(p, 2)


def cost_table(lines: Sequence[Line], equals: Sequence[Equal], headline: str) -> Table | None:
    """Each student in the headline measure minus undistilled, or the teacher, in the fewest steps that cost at least as
    much: as many evaluations, and as much time. None without any."""
    cells = by_cell(lines)
    found: dict[Key, dict[str, Difference]] = {}
    for one in equals:
        found.setdefault((one.difference.label, one.difference.steps), {})[one.cost] = one.difference
    if not found:
        return None
    header = ["method", "steps", "NFE", "flow ms", "with its NFE", "minus it", "with its time", "minus it"]
    table = new_table(f"{headline} at equal cost", header)
    for steps in sorted({key[1] for key in found}):
        for key in (key for key in found if key[1] == steps):
            texts = [*_head(cells[key])[:3], milliseconds(seconds(cells[key].values(), FLOW))]
            for cost in (NFE, TIME):
                texts += _beside(found[key].get(cost), cells, cost)
            table.add_row(*map(Text, texts))
        table.add_section()
    return table


def _beside(one: Difference | None, cells: Cells, cost: str) -> list[str]:
    if one is None:
        return ["", ""]
    other = cells[one.against, one.against_steps].values()
    took = f"{next(iter(other)).nfe:g}" if cost == NFE else f"{milliseconds(seconds(other, FLOW))} ms"
    return [f"{one.against}, {number_of(one.against_steps, 'step')}: {took}", signed(one)]


def detail_table(lines: Sequence[Line]) -> Table | None:
    """Median, 5th and 95th percentile over the objects; None where no measure has them."""
    cells = by_cell(line for line in lines if "/" in line.metric and is_quality(line.metric))
    names = list(dict.fromkeys(name for found in cells.values() for name in found))
    if not names:
        return None
    table = new_table("objects: median and tails", ["method", "steps", *(name.replace("/", " ") for name in names)])
    places = {name: _places([found[name].value for found in cells.values() if name in found]) for name in names}
    for section in _sections(cells):
        for found in section.values():
            values = (fixed(found[name].value, places[name]) if name in found else "" for name in names)
            table.add_row(*map(Text, (*_head(found)[:2], *values)))
        table.add_section()
    return table


def training_table(lines: Sequence[Line], students: Sequence[Mapping[str, Any]]) -> Table | None:
    """What training took, the mean over replicates, and the training seeds; None without students."""
    if not students:
        return None
    table = new_table("training", ["method", "trainings", "evaluations", "seconds", "iterations", "seeds"])
    labels = dict.fromkeys(one["label"] for one in students)
    took = {line.label: line for line in lines if line.label in labels}
    for label, line in ((label, took[label]) for label in labels if label in took):
        own = [one for one in students if one["label"] == label]
        seeds = ", ".join(str(one["seed"]) for one in own if one["seed"] is not None)
        evaluations, spent = f"{line.evaluations or 0:,.0f}", f"{line.training_seconds or 0:,.0f}"
        table.add_row(*map(Text, (label, str(len(own)), evaluations, spent, f"{own[0]['step']:,}", seeds)))
    return table


def measures(lines: Iterable[Line], headline: str) -> list[str]:
    """The quality measures: the headline, then the others in the order of the suite. Medians and percentiles, whose
    names have a "/", are left out."""
    names = dict.fromkeys(line.metric for line in lines if is_quality(line.metric) and "/" not in line.metric)
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


def milliseconds(seconds: float) -> str:
    """A time in milliseconds, without the unit."""
    return number(1000 * seconds) if seconds >= 1e-6 or not seconds else "<0.001"


def _places(values: Sequence[float]) -> int:
    """Decimals that leave the largest value of a column three digits."""
    return decimals(max((abs(value) for value in values if math.isfinite(value)), default=0.0), 3)


def mean(line: Line | None, places: int | None = None) -> str:
    """``275 ±18``; without ± for a single seed. The interval has two digits unless ``places`` says otherwise."""
    if line is None:
        return ""
    if places is None:
        places = min(_places([line.value]), decimals(line.half, 2) if line.half else 6)
    if 1e-6 <= abs(line.value) < math.inf:
        places = max(places, decimals(line.value, 1))  # what is small beside the others of its column is no 0
    spread = "" if line.half is None else f" ±{fixed(line.half, min(places, 6))}"
    return fixed(line.value, min(places, 6)) + spread


def resolved(share: Line) -> bool:
    """Whether a share of the gap says anything: its interval is narrower than the gap, or does not hold 0."""
    return share.half is None or share.half <= WIDE or share.half < abs(share.value)


def share(line: Line | None) -> str:
    """``63 % ±26`` of the gap closed; far beyond 0 and 100 % the gap is small, and only the side is told."""
    if line is None:
        return ""
    if not resolved(line):
        return "not resolved"
    if not FARTHEST[0] <= line.value <= FARTHEST[1]:
        return "below -100 %" if line.value < 0 else "above 200 %"
    spread = "" if line.half is None else f" ±{fixed(100 * line.half, 0)}"
    return f"{fixed(100 * line.value, 0)} %{spread}"


def _best(section: Cells, name: str, lower_is_better: frozenset[str]) -> Key | None:
    """The cell with the best finite value; None where there are fewer than two."""
    sign = 1 if name in lower_is_better else -1
    values = {key: sign * found[name].value for key, found in section.items() if name in found}
    finite = {key: value for key, value in values.items() if math.isfinite(value)}
    return min(finite, key=lambda key: finite[key]) if len(finite) > 1 else None
