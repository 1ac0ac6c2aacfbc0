"""Further tables: differences between methods, equal cost, tails over the objects, and the cost of training."""

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

LEVEL = 0.05  # significance level for adjusted p-values


def difference_table(differences: Sequence[Difference], suite: Suite, reference: str) -> Table | None:
    """The headline measure of each method minus that of the reference method and of undistilled, in equally many steps;
    None if nothing is compared. Bold: better, and the adjusted p is below 0.05."""
    names = [name for name in dict.fromkeys((reference, UNDISTILLED)) if any(d.against == name for d in differences)]
    heads = [(f"minus {name}", "p (Holm)", *([f"nearer than {name}"] if suite.nearness else [])) for name in names]
    cells: dict[Key, dict[str, Difference]] = {}
    for difference in differences:
        if difference.metric == suite.headline:
            cells.setdefault((difference.label, difference.steps), {})[difference.against] = difference
    if not cells:
        return None
    table = new_table(f"differences in {suite.headline}", ["method", "steps", *(head for row in heads for head in row)])
    for section in sections(cells):
        for (label, steps), by_name in section.items():
            compared = (text for name in names for text in _compared(by_name.get(name), bool(suite.nearness)))
            table.add_row(Text(label), Text(str(steps)), *compared)
        table.add_section()
    return table


def _compared(difference: Difference | None, nearness: bool) -> list[Text]:
    if difference is None:
        return [Text("")] * (2 + nearness)
    sure = difference.better is True and difference.p_holm is not None and difference.p_holm < LEVEL
    p = "" if difference.p_holm is None else p_value(difference.p_holm)
    nearer = "" if difference.nearer is None else f"{fixed(100 * difference.nearer, 0)} %"
    nearer += "" if not nearer or difference.nearer_half is None else f" ±{fixed(100 * difference.nearer_half, 0)}"
    return [
        Text(signed(difference.difference, difference.half), "bold" if sure else ""),
        Text(p),
        *([Text(nearer)] if nearness else []),
    ]


def p_value(p: float) -> str:
    """A p-value with two digits, and ``<0.001`` below that."""
    return "<0.001" if p < 0.001 else number(p, 2) if p < 0.1 else fixed(p, 2)


def cost_table(lines: Sequence[Line], compared: Mapping[Key, Mapping[str, Difference]], headline: str) -> Table | None:
    """The comparisons of ``at_equal_cost``: at equal evaluations, and at equal time. None without any."""
    if not compared:
        return None
    cells = by_cell(lines)
    header = ["method", "steps", "NFE", "flow ms", "with its NFE", "minus it", "with its time", "minus it"]
    table = new_table(f"{headline} at equal cost", header)
    for section in sections(compared):
        for key, by_cost in section.items():
            texts = [*row_head(cells[key])[:3], milliseconds(seconds(cells[key].values(), FLOW))]
            for cost in (NFE, TIME):
                texts += _beside(by_cost.get(cost), cells, cost)
            table.add_row(*map(Text, texts))
        table.add_section()
    return table


def _beside(difference: Difference | None, cells: Cells, cost: str) -> list[str]:
    if difference is None:
        return ["", ""]
    other = cells[difference.against, difference.against_steps].values()
    took = f"{next(iter(other)).nfe:g}" if cost == NFE else f"{milliseconds(seconds(other, FLOW))} ms"
    return [
        f"{difference.against}, {number_of(difference.against_steps, 'step')}: {took}",
        signed(difference.difference, difference.half),
    ]


def detail_table(lines: Sequence[Line]) -> Table | None:
    """Median, 5th and 95th percentile over the objects; None if no measure has them."""
    cells = by_cell(line for line in lines if "/" in line.metric and is_quality(line.metric))
    names = list(dict.fromkeys(name for cell in cells.values() for name in cell))
    if not names:
        return None
    table = new_table("objects: median and tails", ["method", "steps", *(name.replace("/", " ") for name in names)])
    places = {name: places_of([cell[name].value for cell in cells.values() if name in cell]) for name in names}
    for section in sections(cells):
        for cell in section.values():
            values = (fixed(cell[name].value, places[name]) if name in cell else "" for name in names)
            table.add_row(*map(Text, (*row_head(cell)[:2], *values)))
        table.add_section()
    return table


def training_table(lines: Sequence[Line], students: Sequence[Mapping[str, Any]]) -> Table | None:
    """The cost of training, as the mean over replicates, and the training seeds; None without students."""
    if not students:
        return None
    table = new_table("training", ["method", "trainings", "evaluations", "seconds", "iterations", "seeds"])
    labels = dict.fromkeys(student["label"] for student in students)
    took = {line.label: line for line in lines if line.label in labels}
    for label, line in ((label, took[label]) for label in labels if label in took):
        replicates = [student for student in students if student["label"] == label]
        seeds = ", ".join(str(student["seed"]) for student in replicates if student["seed"] is not None)
        evaluations, spent = f"{line.evaluations or 0:,.0f}", f"{line.training_seconds or 0:,.0f}"
        iterations = f"{replicates[0]['step']:,}"
        table.add_row(*map(Text, (label, str(len(replicates)), evaluations, spent, iterations, seeds)))
    return table
