"""The chart: quality against steps and against time, a row of panels for each measure."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import inf, isfinite
from pathlib import Path
from typing import Any

from fewstep.benchmark.entrants import OTHER_NOISE, RESERVED, TEACHER, TRUTH, UNDISTILLED
from fewstep.benchmark.rows import FLOW, Line
from fewstep.benchmark.summary import Key, by_cell, seconds
from fewstep.console import number_of
from fewstep.core.suite import Suite
from fewstep.words import chart_escaped, number, shortened

# The palette of Okabe and Ito, safe for colour-blind readers; markers and dashes distinguish lines in greyscale.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "osD^vPX*"
DASHES = ("-", (0, (6, 1.5)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2, 2, 2)))
Style = tuple[str, str, Any]  # colour, marker, dashes
GREY: Style = ("#6f6f6f", "x", "--")
LEVELS = {TEACHER: "-", OTHER_NOISE: "-.", TRUTH: ":"}  # horizontal lines and their styles
WIDTH, HEIGHT, DPI = 9.2, 2.9, 110  # inches, width of the chart and height of a row: 1012 pixels fit a page's width
NAME, LINE, AXIS = 32, 140, 34  # characters of a name, of a line of the legend, and of one beside an axis
PLAIN = "entry "  # before a name: matplotlib leaves names that begin with an underscore out of a legend
FAR = 8  # an axis is logarithmic if the largest value is more than this times the smallest
DODGE, SPREAD = 0.07, 0.6  # distance of methods at one step count, and their largest total extent


@contextmanager
def drawing(path: Path, width: float, height: float, dpi: int = DPI) -> Iterator[Any]:
    """A matplotlib figure in the default style, whatever the user's is; written to ``path`` at the end."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a user's label; it is drawn as a box
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(path, dpi=dpi)


def style(index: int) -> Style:
    """Colour, marker and dashes of a line; 280 combinations are distinct."""
    return COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)], DASHES[index % len(DASHES)]


def styles_of(lines: Sequence[Line]) -> dict[str, Style]:
    """The style of undistilled and of each student, by label."""
    labels = dict.fromkeys(line.label for line in lines if line.label not in RESERVED)
    return {UNDISTILLED: GREY, **{label: style(index) for index, label in enumerate(labels)}}


def chart(lines: Sequence[Line], names: Sequence[str], suite: Suite, path: Path, title: str) -> None:
    """Write the chart: panels against steps and against time for each measure in ``names``, with 95 % intervals."""
    cells = by_cell(lines)
    times = {key: 1000 * seconds(cell.values(), FLOW) for key, cell in cells.items()}
    styles = styles_of(lines)
    with drawing(path, WIDTH, HEIGHT * len(names) + 0.9) as figure:
        panels = figure.subplots(len(names), 2, squeeze=False, sharey="row")
        for (by_steps, by_time), name in zip(panels, names, strict=True):
            values = {key: cell[name] for key, cell in cells.items() if name in cell and isfinite(cell[name].value)}
            if name != suite.headline:
                values = {key: line for key, line in values.items() if key[0] != TRUTH}
            floor = floor_of(suite, name, values.values())
            steps = sorted({key[1] for key in values if key[0] in styles})
            _panel(by_steps, values, styles, _dodged(values, styles, steps), times, floor)
            by_steps.set_xticks(range(len(steps)), [str(count) for count in steps])
            by_steps.set_xlim(-0.5, max(len(steps), 1) - 0.5)
            _panel(by_time, values, styles, {key: time for key, time in times.items() if time > 0}, times, floor)
            _time_axis(by_time)
            better = f"{'lower' if name in suite.lower_is_better else 'higher'} is better"
            drawn = [line.value for key, line in values.items() if key[0] in {TEACHER, *styles}]
            if far_apart(drawn):
                log_axis(by_steps, "y", min(drawn) / 1.3, max(drawn) * 1.3)
                better += ", log scale"
            words = [*textwrap.wrap(suite.in_words(name), AXIS), f"({better})"]
            by_steps.set_ylabel(chart_escaped("\n".join(words)))
        panels[-1, 0].set_xlabel("sampling steps")
        panels[-1, 1].set_xlabel("sampling time, ms per sample (log scale)")
        _legend(figure, panels)
        figure.suptitle(chart_escaped(shortened(title, LINE)), x=0.01, ha="left", fontsize=10, weight="bold")
        if any(line.half is not None for line in lines):
            panels[0, 0].set_title("bars and the grey band: 95 % intervals", loc="left", fontsize=8.5)


def _legend(figure: Any, panels: Any) -> None:
    """Draw one legend for all panels, below them."""
    entries: dict[str, Any] = {}
    for axes in panels.flat:
        handles, names = axes.get_legend_handles_labels()
        entries |= dict(zip(names, handles, strict=True))
    texts = [shortened(name.removeprefix(PLAIN), NAME) for name in entries]
    columns = max(min(len(texts), LINE // (max(map(len, texts), default=0) + 7)), 1)
    legend = figure.legend(entries.values(), entries, loc="outside lower left", ncols=columns, frameon=False)
    for shown, text in zip(legend.get_texts(), texts, strict=True):
        shown.set_text(chart_escaped(text))


def _dodged(values: dict[Key, Line], styles: dict[str, Style], steps: Sequence[int]) -> dict[Key, float]:
    """The place of each point: step counts are categories, at each of which the methods stand side by side."""
    shown = [label for label in styles if any(key[0] == label for key in values)]
    apart = min(DODGE, SPREAD / max(len(shown), 1))
    shifts = {label: apart * (place - (len(shown) - 1) / 2) for place, label in enumerate(shown)}
    return {key: steps.index(key[1]) + shifts[key[0]] for key in values if key[0] in shifts}


def _panel(
    axes: Any,
    values: dict[Key, Line],
    styles: dict[str, Style],
    places: dict[Key, float],
    times: dict[Key, float],
    floor: float,
) -> None:
    """Draw one line for each method with points in ``places``, and the references as horizontal levels."""
    for label, (colour, marker, dashes) in styles.items():
        keys = sorted((key for key in values if key[0] == label and key in places), key=lambda key: key[1])
        if not keys:
            continue
        at, points = [places[key] for key in keys], [values[key] for key in keys]
        middle, low, high = bounds(points, floor)
        text = PLAIN + label
        axes.plot(at, middle, color=colour, marker=marker, ls=dashes, lw=1.6, ms=5, label=text)
        axes.vlines(at, low, high, color=colour, lw=1.2, alpha=0.8)
    _levels(axes, values, times, floor)
    axes.grid(axis="y", color="#e4e4e4", lw=0.8)
    axes.set_axisbelow(True)


def floor_of(suite: Suite, name: str, lines: Iterable[Line]) -> float:
    """The lower bound of a measure's intervals: 0, or -inf if it can be negative."""
    return 0.0 if name not in suite.signed and all(line.value >= 0 for line in lines) else -inf


def bounds(lines: Sequence[Line], floor: float) -> tuple[list[float], list[float], list[float]]:
    """Values, and both ends of their intervals, not below ``floor``; without an interval both are the value."""
    values, halves = [line.value for line in lines], [line.half or 0.0 for line in lines]
    low = [max(value - half, floor) for value, half in zip(values, halves, strict=True)]
    return values, low, [value + half for value, half in zip(values, halves, strict=True)]


def _levels(axes: Any, values: dict[Key, Line], times: dict[Key, float], floor: float) -> None:
    """Draw the teacher with its interval as a band, and other references that differ from it and lie in view."""
    levels = {key[0]: line for key, line in values.items() if key[0] in LEVELS}
    teacher = levels.get(TEACHER)
    _, low, high = bounds([line for key, line in values.items() if key[0] not in (TRUTH, OTHER_NOISE)], floor)
    for label, line in levels.items():
        text = label
        if label == TEACHER:
            text += f", {number_of(line.steps, 'step')} ({number(times[label, line.steps])} ms)"
        elif (teacher and line.value == teacher.value) or not min(low) <= line.value <= max(high):
            continue
        axes.axhline(line.value, color="black", lw=1.2, ls=LEVELS[label], label=PLAIN + text, zorder=1)
        (_,), (bottom,), (top,) = bounds([line], floor)
        axes.axhspan(bottom, top, color="black", alpha=0.09, lw=0, zorder=0)


def _time_axis(axes: Any) -> None:
    """A logarithmic axis, also if all times are similar."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    log_axis(axes, "x", *((low / 2, high * 2) if high < 4 * low else (low, high)))


def far_apart(values: Collection[float]) -> bool:
    """Whether values need a logarithmic axis, and can have one."""
    return min(values, default=0.0) > 0 and max(values) > FAR * min(values)


def log_axis(axes: Any, which: str, low: float, high: float) -> None:
    """Make the axis ``which``, "x" or "y", logarithmic, from ``low`` to ``high``, with a few plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value, 1)))
    axis.set_minor_locator(NullLocator())
