"""The chart of many methods: their order, panels, scale and odd values."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image
from test_bench import Gaussian, Points, bench, info

from fewstep.benchmark import ranking as ranked
from fewstep.benchmark import report
from fewstep.benchmark.ranking import MANY, ranking
from fewstep.benchmark.rows import Line

NAMES = [f"m{number}" for number in range(MANY + 1)]


class Watched(Points):
    titles = {"w2": "distance of $points$"}  # noqa: RUF012


def line(label: str, steps: int, value: float, half: float | None = None) -> Line:
    return Line(label=label, method=label, steps=steps, nfe=1.0, guidance=1.0, sampler="euler", made_for=True,
                metric="w2", value=value, half=half, count=3)  # fmt: skip


def lines(value: Any) -> list[Line]:
    """The teacher, and each method in one and two steps with ``value`` of its place; the last is the best."""
    places = list(enumerate(["undistilled", *NAMES]))
    found = [line(name, steps, value(len(places) - at) / steps, 0.5) for steps in (1, 2) for at, name in places]
    return [line("teacher", 25, 0.9, 0.1), line("truth, decoded", 0, 0.1), *found]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is drawn."""
    made: list[Figure] = []
    real = ranked._scale

    def scale(panels: Any, values: Any) -> None:
        made.append(panels[0].figure)
        real(panels, values)

    monkeypatch.setattr(ranked, "_scale", scale)
    return made


def test_methods_stand_in_the_order_of_the_fewest_steps(tmp_path: Path, figures: list[Figure]) -> None:
    ranking(lines(float), Watched(), tmp_path / "c.png", "title")
    one, two = figures[0].axes
    assert [text.get_text() for text in one.get_yticklabels()] == [*reversed(NAMES), "undistilled"]
    assert [one.get_title(), two.get_title()] == ["1 step", "2 steps"]
    bars, dots = one.collections[:2]
    assert [tuple(dot) for dot in dots.get_offsets()] == [(at + 1, at) for at in range(len(NAMES) + 1)]
    assert bars.get_segments()[1][:, 0].tolist() == [1.5, 2.5]
    assert len({tuple(colour) for colour in dots.get_facecolors()}) == 3  # the first student, the others, undistilled
    assert one.get_ylim()[0] > one.get_ylim()[1]  # the best on top
    assert figures[0].legends[0].get_texts()[0].get_text() == "teacher, 25 steps"


def test_a_higher_measure_is_ordered_the_other_way(tmp_path: Path, figures: list[Figure]) -> None:
    suite = Watched()
    suite.lower_is_better = frozenset()
    ranking(lines(float), suite, tmp_path / "c.png", "title")
    assert [text.get_text() for text in figures[0].axes[0].get_yticklabels()] == ["undistilled", *NAMES]


@pytest.mark.parametrize(("value", "scale"), [(lambda at: 10.0 + at, "linear"), (lambda at: 2.0**at, "log")])
def test_the_axis_is_logarithmic_where_values_are_far_apart(
    tmp_path: Path, figures: list[Figure], value: Any, scale: str
) -> None:
    far = [one for one in lines(value) if one.label != "teacher"]
    ranking(far, Watched(), tmp_path / "c.png", "title")
    assert {axes.get_xscale() for axes in figures[0].axes} == {scale}


@pytest.mark.parametrize(
    "found",
    [
        [],
        [line("teacher", 25, 1.0)],
        [line(name, 1, 0.0, 0.0) for name in NAMES],
        [line(name, 1, math.nan if name == "m0" else 1.0) for name in NAMES],
        [line(name, 1 + at % 2, -1.0 * at) for at, name in enumerate(NAMES)],
    ],
    ids=["nothing", "no student", "zeros", "not finite", "other steps"],
)
def test_charts_of_little_and_of_odd_values(tmp_path: Path, found: list[Line]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ranking(found, Watched(), tmp_path / "c.png", "title")
    assert Image.open(tmp_path / "c.png").width == 1012


@pytest.mark.parametrize("students", [MANY, MANY + 1])
def test_a_bench_of_many_methods_draws_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, students: int) -> None:
    drawn: list[Path] = []
    monkeypatch.setattr(report, "ranking", lambda lines, suite, path, title: drawn.append(path.touch() or path))
    bench(tmp_path / "b", students=[(name, Gaussian(0.0), info()) for name in NAMES[:students]], steps=(1,))
    assert len(drawn) == (students > MANY)
