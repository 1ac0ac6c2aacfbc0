"""The chart: quality against steps, one line a method, the teacher as a horizontal band."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewstep.benchmark.entrants import OTHER_NOISE, RESERVED, TEACHER, TRUTH, UNDISTILLED
from fewstep.benchmark.rows import Line

MARKERS = "osD^vP*X"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d", "#000000")
GREY = "#777777"
LEVELS = {TEACHER: "-", OTHER_NOISE: "-.", TRUTH: ":"}  # horizontal lines and their styles
MARGIN = 1.4  # left and right of the step counts, as a factor: with one count only, methods still stand together
SHIFT = 0.035  # of a student to the right, in doublings of the steps, so that error bars do not cover each other


def chart(lines: Sequence[Line], names: Sequence[str], lower_is_better: frozenset[str], path: Path, title: str) -> None:
    """Write the chart: one panel for each measure in ``names``, with 95 % intervals over seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(names) + 1.6, 4.2), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06, w_pad=0.1)  # type: ignore[call-arg,union-attr,unused-ignore]
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        _panel(axes, [line for line in lines if line.metric == name])
        better = "lower" if name in lower_is_better else "higher"
        axes.set(xlabel="steps", ylabel=f"{name} ({better} is better)")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)


def _panel(axes: Any, lines: Sequence[Line]) -> None:
    labels = list(dict.fromkeys(line.label for line in lines))
    students = [label for label in labels if label not in RESERVED]
    for label in labels:
        found = sorted((line for line in lines if line.label == label), key=lambda line: line.steps)
        if label in LEVELS:
            line, spread = found[0], found[0].half or 0.0
            text = f"{label} ({line.steps} steps)" if label == TEACHER else label
            axes.axhline(line.value, color="black", lw=1.2, ls=LEVELS[label], label=text)
            axes.axhspan(line.value - spread, line.value + spread, color="black", alpha=0.08, lw=0)
            continue
        colour, marker, style, shift = GREY, "o", "--", 0.0
        if label != UNDISTILLED:
            index = students.index(label)
            colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
            style, shift = "-", SHIFT * (index + 1)
        steps, values = [line.steps * 2**shift for line in found], [line.value for line in found]
        half = [line.half or 0.0 for line in found]
        axes.errorbar(steps, values, half, label=label, color=colour, marker=marker, ls=style, capsize=3, lw=1.6, ms=5)
    axes.set_xscale("log", base=2)
    ticks = sorted({line.steps for line in lines if line.label not in LEVELS})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    if ticks:
        axes.set_xlim(ticks[0] / MARGIN, ticks[-1] * MARGIN)
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
