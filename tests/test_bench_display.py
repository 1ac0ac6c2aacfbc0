"""What a bench shows: numbers, names of every kind, charts of few and of odd values, verdicts."""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from test_bench import Gaussian, Points, bench, info

from fewstep.benchmark import chart as charting
from fewstep.benchmark.chart import DODGE, chart, drawing
from fewstep.benchmark.progress import CellProgress
from fewstep.benchmark.rows import Line
from fewstep.benchmark.tables import markdown, new_table, quality_table
from fewstep.benchmark.tabulate import verdicts
from fewstep.cli.bench import _labelled
from fewstep.errors import FewstepError
from fewstep.words import chart_escaped, markdown_escaped, number, shortened

NAMES = (
    r"a$\bad{$",
    "$x$",
    "[red]x[/]",
    "[/red]",
    "a|b",
    "_hidden",
    "*bold* `code`",
    "50 %",
    "<b>&amp;</b>",
    'it\'s "quoted"',
    "emoji 😀 漢字",
    "x" * 300,
    "key=value",
    "perfect",
    r"\frac{1}{0}",
    "#1",
    "--out",
    "C:\\models\\mine",
)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1138.4, "1138"), (24.36, "24.4"), (0.001239, "0.00124"), (9.996, "10.0"), (0.0, "0"), (2310.0, "2310"),
     (-0.5, "-0.500"), (math.nan, "not finite"), (-math.inf, "not finite"), (123456.0, "123456")],
)  # fmt: skip
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_words() -> None:
    assert shortened("abcdefghij", 5) == "ab…ij"
    assert shortened("abcde", 5) == "abcde"
    assert markdown_escaped("a_b _c_ |$<") == r"a_b \_c\_ \|\$\<"
    assert chart_escaped(r"a$\b$") == r"a\$\b\$"


def test_names_of_every_kind_come_through_a_whole_bench(tmp_path: Path) -> None:
    students = [(name, Gaussian(0.0), info()) for name in NAMES]
    found = bench(tmp_path / "b", students=students, steps=(1,), seeds=(0,), limit=10, width=2000)
    assert all(name in found.text for name in NAMES)
    assert {row["label"] for row in found.rows()} >= set(NAMES)
    text = (tmp_path / "b" / "table.md").read_text()
    table = text[text.index("| method") : text.index("## differences")]
    cells = {line.replace(r"\|", "").count("|") for line in table.strip().splitlines()}
    assert len(cells) == 1  # a name adds no column
    assert "<b>" not in text.replace(r"\<b\>", "")
    assert "<b>&amp;</b>" not in found.report._repr_html_()
    Image.open(tmp_path / "b" / "chart.png").verify()


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    """Two names of which matplotlib would make one formula, or nothing, leave as much ink as plain ones."""

    def ink(text: str) -> int:
        with drawing(tmp_path / "t.png", 3, 0.5, 100) as figure:
            figure.text(0, 0.5, chart_escaped(text))
        return int((np.asarray(Image.open(tmp_path / "t.png").convert("L")) < 128).sum())

    assert ink("$xxxx$") > ink("xxxx") + 20
    assert ink(r"\$") > ink("$")


@pytest.mark.parametrize("name", ["two\nlines", "tab\t", "\x1b[31mred", "teacher"])
def test_names_that_cannot_be_shown_are_refused_before_anything_runs(tmp_path: Path, name: str) -> None:
    network = Gaussian(0.0)
    with pytest.raises(FewstepError, match="--student: label"):
        bench(tmp_path / "b", students=[(name, network, info())])
    assert not network.calls
    assert not (tmp_path / "b").exists()


def line(label: str, steps: int, value: float, half: float | None = None, metric: str = "w2") -> Line:
    return Line(label=label, method=label, steps=steps, nfe=1.0, guidance=1.0, sampler="euler", made_for=True,
                metric=metric, value=value, half=half, count=3)  # fmt: skip


def lines(*students: str, half: float | None = 5.0, steps: tuple[int, ...] = (1, 2)) -> list[Line]:
    cells = [("teacher", 25), *((name, n) for name in ("undistilled", *students) for n in steps)]
    found = [line(label, n, 2.0 + index, half) for index, (label, n) in enumerate(cells)]
    return found + [line(label, n, 0.001 * n, metric="seconds_flow") for label, n in cells]


class Watched(Points):
    titles = {"w2": "distance of $points$"}  # noqa: RUF012


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is drawn."""
    made: list[Figure] = []
    real = charting._panel

    def panel(axes: Any, *rest: Any) -> None:
        made.append(axes)
        real(axes, *rest)

    monkeypatch.setattr(charting, "_panel", panel)
    return made


def test_the_chart_s_axes_are_in_words_and_methods_stand_at_their_tick(tmp_path: Path, figures: list[Any]) -> None:
    chart(lines("a", "b"), ["w2"], Watched(), tmp_path / "c.png", "title")
    by_steps, by_time = figures
    assert by_steps.get_ylabel() == "distance of \\$points\\$\n(lower is better)"
    assert by_time.get_xlabel() == "sampling time, ms per sample (log scale)"
    assert [text.get_text() for text in by_steps.get_xticklabels()] == ["1", "2"]
    drawn = {one.get_label(): one.get_xdata() for one in by_steps.lines if len(one.get_xdata()) == 2}
    places = np.array([drawn[f"{charting.PLAIN}{name}"] for name in ("undistilled", "a", "b")])
    assert places.mean(0) == pytest.approx([0, 1])  # around each tick
    assert np.diff(places, axis=0) == pytest.approx(DODGE)
    times = {one.get_label(): list(one.get_xdata()) for one in by_time.lines}
    assert times[f"{charting.PLAIN}a"] == [1.0, 2.0]  # milliseconds


def test_long_titles_of_measures_do_not_run_into_each_other(tmp_path: Path, figures: list[Any]) -> None:
    class Long(Watched):
        titles = dict.fromkeys(("w2", "seconds_flow"), "distance to the views of the teacher's samples, other noise")

    chart(lines("a"), ["w2", "seconds_flow"], Long(), tmp_path / "c.png", "title")
    upper, lower = (axes.yaxis.label.get_window_extent() for axes in figures[::2])
    assert lower.y1 < upper.y0


@pytest.mark.parametrize(("worst", "scale"), [(7.9, "linear"), (8.1, "log")])
def test_values_far_apart_have_a_logarithmic_axis(tmp_path: Path, figures: list[Any], worst: float, scale: str) -> None:
    found = [line("teacher", 25, 1.0, 2.0), line("undistilled", 1, worst), line("a", 1, 2.0, 3.0)]
    chart(found, ["w2"], Watched(), tmp_path / "c.png", "title")
    assert [axes.get_yscale() for axes in figures] == [scale, scale]
    assert ("log scale" in figures[0].get_ylabel()) == (scale == "log")
    low, high = figures[0].get_ylim()
    assert low < 1.0 < worst < high
    if scale == "log":  # an interval down to 0 does not stretch the axis
        assert (low, high) == pytest.approx((1.0 / 1.3, worst * 1.3))


@pytest.mark.parametrize(("signed", "least"), [(False, 0.0), (True, -3.0)])
def test_no_interval_reaches_below_zero_where_the_measure_cannot(
    tmp_path: Path, figures: list[Any], signed: bool, least: float
) -> None:
    suite = Watched()
    suite.signed = frozenset({"w2"} if signed else ())
    chart(lines("a"), ["w2"], suite, tmp_path / "c.png", "title")
    ends = [y for bars in figures[0].collections for segment in bars.get_segments() for y in segment[:, 1]]
    band = [patch.get_y() for patch in figures[0].patches]
    assert min(ends + band) == pytest.approx(least)


@pytest.mark.parametrize(
    "found",
    [
        [],
        lines(half=None, steps=(1,)),
        lines("a", half=None, steps=(1,)),
        [line("teacher", 25, math.nan), line("a", 1, math.inf), line("a", 2, 3.0)],
        [one for one in lines("a") if one.label != "teacher"],
        lines(*(f"method {i}" for i in range(20))),
        [replace(one, value=0.0, half=0.0) for one in lines("a")],
    ],
    ids=["nothing", "no student", "one point", "not finite", "no teacher", "many", "zeros"],
)
def test_charts_of_little_and_of_odd_values(tmp_path: Path, found: list[Line]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chart(found, ["w2"], Watched(), tmp_path / "c.png", "title")
    assert Image.open(tmp_path / "c.png").width == 1012


def test_a_chart_does_not_depend_on_the_user_s_style(tmp_path: Path) -> None:
    import matplotlib

    chart(lines("a"), ["w2"], Watched(), tmp_path / "a.png", "title")
    with matplotlib.rc_context({"text.usetex": True, "font.size": 30, "axes.facecolor": "black"}):
        chart(lines("a"), ["w2"], Watched(), tmp_path / "b.png", "title")
        assert matplotlib.rcParams["font.size"] == 30
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def gap(value: float, half: float | None, steps: int = 1) -> list[Line]:
    return [line("mine", steps, 3.0), line("mine", steps, value, half, "gap_closed/w2"),
            line("mine", steps, 61.3, metric="speedup_flow")]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "half", "text", "cell"),
    [
        (0.54, 0.11, "54 % of the gap to the teacher closed (±11)", "54 % ±11"),
        (0.54, None, "54 % of the gap to the teacher closed (one seed, so no interval)", "54 %"),
        (-0.35, 3.89, "the share of the gap to the teacher closed is not resolved by 3 seeds", "not resolved"),
        (
            -0.35,
            0.1,
            "worse than undistilled in as many steps, -35 % of the gap to the teacher closed (±10)",
            "-35 % ±10",
        ),
        (
            -3.6,
            0.9,
            "worse than undistilled in as many steps, below -100 % of the gap to the teacher closed",
            "below -100 %",
        ),
        (0.07, 0.41, "7 % of the gap to the teacher closed (±41)", "7 % ±41"),
    ],
)
def test_a_verdict_and_its_cell(value: float, half: float | None, text: str, cell: str) -> None:
    suite: Any = SimpleNamespace(headline="w2", in_words=lambda name: name)
    assert verdicts(gap(value, half), suite) == [f"mine, 1 step: {text}, 61 times faster flow."]
    assert f"| {cell} |" in markdown(quality_table(gap(value, half), "w2", frozenset({"w2"})))


def test_a_verdict_is_of_the_fewest_steps_and_says_what_there_is_not() -> None:
    suite: Any = SimpleNamespace(headline="w2", in_words=lambda name: "distance")
    assert verdicts([*gap(0.9, 0.1, 4), *gap(0.5, 0.1, 2)], suite)[0].startswith("mine, 2 steps: 50 %")
    (text,) = verdicts([line("mine", 1, 3.0), line("mine", 1, 0.5, metric="speedup_flow")], suite)
    assert (
        text
        == "mine, 1 step: no gap to close, undistilled is no worse than the teacher (distance), 2.0 times slower flow."
    )
    (text,) = verdicts([line("mine", 1, 0.25, metric="non_finite")], suite)
    assert text == "mine, 1 step: 25 % of the samples are not finite."
    (text,) = verdicts(lines(), suite)
    assert text == "No student was measured. distance: the teacher 2.0 ±5.0, undistilled in 1 step 3.0 ±5.0."
    assert verdicts([], suite) == ["No student was measured."]


def test_a_bench_ends_with_its_verdicts(tmp_path: Path) -> None:
    found = bench(tmp_path / "b", seeds=(0, 1), steps=(1,))
    *_, first, second = found.text.strip().splitlines()
    assert first.startswith("perfect, 1 step: ")
    assert second.startswith("worse, 1 step: ")
    assert " times " in second
    assert "perfect, 1 step: " in (tmp_path / "b" / "table.md").read_text()


def test_columns_have_no_exponents_and_few_digits() -> None:
    found = [line("a", 1, 1138.4, 20.3), line("b", 1, 4310.2, None), line("c", 2, 0.1, 0.02)]
    text = markdown(quality_table(found, "w2", frozenset({"w2"})))
    assert all(cell in text for cell in ("1138 ±20", "| 0.1 ±0.0 |", "| 4310 |"))
    assert "e+" not in text


def test_a_rich_table_shows_marks_as_they_are() -> None:
    table = new_table("t", ["method"])
    from rich.text import Text

    table.add_row(Text("[red]x[/]"))
    console = Console(file=io.StringIO(), width=80)
    console.print(table)
    assert "[red]x[/]" in console.file.getvalue()  # type: ignore[attr-defined]


def test_labels_and_paths_may_hold_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("run", "a=b", "lr=1e-3=b"):
        (tmp_path / name).mkdir()
    expected = {
        "run": (None, "run"),
        "a=b": (None, "a=b"),
        "mine=run": ("mine", "run"),
        "mine=a=b": ("mine", "a=b"),
        "lr=1e-3=run": ("lr=1e-3", "run"),
        "x=lr=1e-3=b": ("x", "lr=1e-3=b"),
        "mine=~/run": ("mine", str(tmp_path / "run")),
        "mine=missing": ("mine", "missing"),
    }
    assert {text: _labelled(text) for text in expected} == {
        text: (label, Path(path)) for text, (label, path) in expected.items()
    }
    for text in ("=run", "mine=", "="):
        with pytest.raises(FewstepError, match="accepted is PATH or LABEL=PATH"):
            _labelled(text)


def test_the_time_left_is_known_from_the_first_evaluation_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("fewstep.benchmark.progress.time.monotonic", lambda: now[0])
    progress = CellProgress(Console(file=io.StringIO(), force_terminal=True), [100.0, 10.0])
    try:
        progress.begin("seed 0  teacher, 25 steps")
        assert progress.left() is None
        now[0] = 1.0
        progress.tick(10)  # 0.1 s each: 100 are left, and beside them a third of the teacher's 10 s for each cell
        assert progress.left() == pytest.approx(10 + 2 * 10 / 3)
        (task,) = progress.progress.tasks
        assert task.description == "seed 0  teacher, 25 steps"
        assert (task.fields["cell"], task.fields["left"]) == ("cell 1/2", "0:17 left")
        now[0] = 14.0
        progress.end("w2 0.1", 10.0)
        assert progress.left() == pytest.approx(1 + 4)
    finally:
        progress.stop()


def test_a_pipe_names_what_is_measured_before_and_after(tmp_path: Path) -> None:
    text = bench(tmp_path / "b", seeds=(0,), steps=(1,)).text.splitlines()
    assert text[0] == "seed 0  teacher, 25 steps  cell 1/4 begins"
    assert text[1].startswith("seed 0  teacher, 25 steps  w2 0.")
    assert text[1].endswith(" left")
    assert "cell 4/4  0:00 left" in text[4]
