"""The chart of many methods: one row per method, ordered by the headline measure in the fewest steps, and one panel
per step count."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite
from pathlib import Path
from typing import Any

from fewstep.benchmark.chart import (
    COLOURS,
    GREY,
    LINE,
    NAME,
    WIDTH,
    bounds,
    drawing,
    far_apart,
    floor_of,
    log_axis,
)
from fewstep.benchmark.entrants import OTHER_NOISE, TEACHER, TRUTH, UNDISTILLED
from fewstep.benchmark.rows import Line
from fewstep.console import number_of
from fewstep.core.suite import Suite
from fewstep.words import chart_escaped, shortened

MANY = 10  # methods beyond which lines in one panel cannot be told apart
ROW, HEAD = 0.19, 1.15  # inches of a row, and of title, axis and legend together


def ranking(lines: Sequence[Line], suite: Suite, path: Path, title: str) -> None:
    """Write the chart of the headline measure, with 95 % intervals. The first student stands out in colour."""
    of_headline = [line for line in lines if line.metric == suite.headline and isfinite(line.value)]
    measured = {
        (line.label, line.steps): line for line in of_headline if line.label not in (TEACHER, OTHER_NOISE, TRUTH)
    }
    teacher = next((line for line in of_headline if line.label == TEACHER), None)
    steps = sorted({count for _, count in measured})
    order = _order(measured, steps, suite.headline in suite.lower_is_better)
    first = next((label for label, _ in measured if label != UNDISTILLED), "")
    floor = floor_of(suite, suite.headline, of_headline)
    with drawing(path, WIDTH, ROW * len(order) + HEAD) as figure:
        panels = figure.subplots(1, max(len(steps), 1), squeeze=False, sharey=True)[0]
        for axes, count in zip(panels, steps, strict=False):
            shown = {at: measured[label, count] for at, label in enumerate(order) if (label, count) in measured}
            _panel(axes, shown, first, floor)
            axes.set_title(number_of(count, "step"), fontsize=9)
            if teacher is not None:
                (value,), (low,), (high,) = bounds([teacher], floor)
                text = f"teacher, {number_of(teacher.steps, 'step')}"
                axes.axvline(value, color="black", lw=1.0, label=text, zorder=1)
                axes.axvspan(low, high, color="black", alpha=0.09, lw=0, zorder=0)
        _scale(panels, [line.value for line in (*measured.values(), *([teacher] if teacher else []))])
        panels[0].set_yticks(range(len(order)), [chart_escaped(shortened(label, NAME)) for label in order], fontsize=8)
        panels[0].set_ylim(len(order) - 0.4, -0.6)
        better = "lower" if suite.headline in suite.lower_is_better else "higher"
        words = f"{suite.in_words(suite.headline)} ({better} is better); bars: 95 % intervals"
        figure.supxlabel(chart_escaped(shortened(words, LINE)), fontsize=9)
        if teacher is not None:
            handles, names = panels[0].get_legend_handles_labels()
            figure.legend(handles, names, loc="outside upper right", frameon=False)
        figure.suptitle(chart_escaped(shortened(title, LINE)), x=0.01, ha="left", fontsize=10, weight="bold")


def _order(measured: dict[tuple[str, int], Line], steps: Sequence[int], lower: bool) -> list[str]:
    """Labels from best to worst in the fewest steps; those that were not measured there come last."""

    def place(label: str) -> float:
        line = measured.get((label, steps[0]))
        return inf if line is None else line.value if lower else -line.value

    return sorted(dict.fromkeys(label for label, _ in measured), key=place)


def _panel(axes: Any, shown: dict[int, Line], first: str, floor: float) -> None:
    """Values and intervals by row."""
    values, low, high = bounds(list(shown.values()), floor)
    colours = {UNDISTILLED: GREY[0], first: COLOURS[1]}
    drawn = [colours.get(line.label, COLOURS[0]) for line in shown.values()]
    axes.hlines(list(shown), low, high, color=drawn, lw=1.4, zorder=2)
    axes.scatter(values, list(shown), color=drawn, s=16, zorder=3)
    axes.grid(axis="y", color="#ececec", lw=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)


def _scale(panels: Sequence[Any], values: Sequence[float]) -> None:
    """The same axis for all panels, chosen by the values: a much wider interval runs out of the panel."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    for axes in panels:
        if far_apart(values):
            log_axis(axes, "x", low / 1.3, high * 1.3)
        else:
            margin = 0.06 * (high - low or 1.0)
            axes.set_xlim(low - margin, high + margin)
