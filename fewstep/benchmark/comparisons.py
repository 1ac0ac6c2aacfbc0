"""Further tables: differences of methods, equal cost, tails over the objects, and what training took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from fewstep.benchmark.differences import NFE, TIME, Difference
from fewstep.benchmark.entrants import UNDISTILLED
from fewstep.benchmark.rows import FLOW, Line, is_quality
from fewstep.benchmark.summary import Key, by_cell, seconds
from fewstep.benchmark.tables import Cells, milliseconds, new_table, places_of, row_head, sections, signed
from fewstep.console import number_of
from fewstep.core.suite import Suite
from fewstep.words import fixed, number

LEVEL = 0.05  # of adjusted p-values


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
    for section in sections(cells):
        for (label, steps), by_name in section.items():
            compared = (text for name in names for text in _compared(by_name.get(name), bool(suite.nearness)))
            table.add_row(Text(label), Text(str(steps)), *compared)
        table.add_section()
    return table


def _compared(one: Difference | None, nearness: bool) -> list[Text]:
    if one is None:
        return [Text("")] * (2 + nearness)
    sure = one.better is True and one.p_holm is not None and one.p_holm < LEVEL
    p = "" if one.p_holm is None else p_value(one.p_holm)
    nearer = "" if one.nearer is None else f"{fixed(100 * one.nearer, 0)} %"
    nearer += "" if not nearer or one.nearer_half is None else f" ±{fixed(100 * one.nearer_half, 0)}"
    return [
        Text(signed(one.difference, one.half), "bold" if sure else ""),
        Text(p),
        *([Text(nearer)] if nearness else []),
    ]


def p_value(p: float) -> str:
    """Two digits, and no more zeros than anyone reads."""
    return "<0.001" if p < 0.001 else number(p, 2) if p < 0.1 else fixed(p, 2)


def cost_table(lines: Sequence[Line], found: Mapping[Key, Mapping[str, Difference]], headline: str) -> Table | None:
    """What ``at_equal_cost`` found: as many evaluations, and as much time. None without any."""
    if not found:
        return None
    cells = by_cell(lines)
    header = ["method", "steps", "NFE", "flow ms", "with its NFE", "minus it", "with its time", "minus it"]
    table = new_table(f"{headline} at equal cost", header)
    for section in sections(found):
        for key, by_cost in section.items():
            texts = [*row_head(cells[key])[:3], milliseconds(seconds(cells[key].values(), FLOW))]
            for cost in (NFE, TIME):
                texts += _beside(by_cost.get(cost), cells, cost)
            table.add_row(*map(Text, texts))
        table.add_section()
    return table


def _beside(one: Difference | None, cells: Cells, cost: str) -> list[str]:
    if one is None:
        return ["", ""]
    other = cells[one.against, one.against_steps].values()
    took = f"{next(iter(other)).nfe:g}" if cost == NFE else f"{milliseconds(seconds(other, FLOW))} ms"
    return [f"{one.against}, {number_of(one.against_steps, 'step')}: {took}", signed(one.difference, one.half)]


def detail_table(lines: Sequence[Line]) -> Table | None:
    """Median, 5th and 95th percentile over the objects; None where no measure has them."""
    cells = by_cell(line for line in lines if "/" in line.metric and is_quality(line.metric))
    names = list(dict.fromkeys(name for found in cells.values() for name in found))
    if not names:
        return None
    table = new_table("objects: median and tails", ["method", "steps", *(name.replace("/", " ") for name in names)])
    places = {name: places_of([found[name].value for found in cells.values() if name in found]) for name in names}
    for section in sections(cells):
        for found in section.values():
            values = (fixed(found[name].value, places[name]) if name in found else "" for name in names)
            table.add_row(*map(Text, (*row_head(found)[:2], *values)))
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
