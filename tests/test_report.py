"""The page of a bench: what is in it, that names from outside stay text, and that a browser shows and turns objects."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from browser import CHROMIUM, Browser
from fewstep_shapes3d.export.contact import as_png
from fewstep_shapes3d.export.glb import glb
from fewstep_shapes3d.measures.shapes import Shapes
from fewstep_shapes3d.mesh.voxels import voxel_mesh
from test_bench import Bench, Gaussian, Points, bench, info
from test_bench_display import NAMES
from test_suite_trellis import COUNT, suite

from fewstep.benchmark.page import LIMIT, write_page
from fewstep.cli import main
from fewstep.core.suite import Exhibit, Rows, SheetRow

HOSTILE = (*NAMES, "</script><script>alert(1)</script>", "<!--", "{{data}}", "../../up", "a/b", "a:b", "<img src=x>")


class Solids(Points):
    """Every row made a cube, the last row nothing."""

    count = 2

    def gallery(self, rows: Rows, count: int) -> list[Exhibit]:
        grid = torch.zeros(6, 6, 6, dtype=torch.bool)
        grid[2:4, 2:4, 2:4] = True
        cube, picture = glb(voxel_mesh(grid), normals=False), as_png(np.full((8, 8, 3), 200, np.uint8))
        models = (*[cube] * (len(rows) - 1), b"")
        return [Exhibit(f"object {at}", picture, cube, models, 10.0 * at) for at in range(min(self.count, count))]


class Page(HTMLParser):
    """The elements of a page, and the content of its scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self.links: list[str] = []
        self.path = path
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)
        self.data: dict[str, Any] = json.loads(self.scripts[0])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script":
            self.scripts[-1] += data


def written(found: Bench, solids: Points, labels: list[str], count: int = 8) -> Page:
    rows = [SheetRow(f"{label}, 1 step", None, (), "1 step") for label in labels]
    write_page(found.report, solids, rows, [0], count)
    return Page(found.report.folder / "report.html")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, Bench]:
    students = [(name, Gaussian(0.0), info()) for name in HOSTILE]
    found = bench(tmp_path_factory.mktemp("page") / "b", students=students, steps=(1, 2), seeds=(0, 1), limit=10)
    return written(found, Solids(), list(HOSTILE)), found


def test_a_page_holds_all_and_asks_for_nothing(hostile: tuple[Page, Bench]) -> None:
    page, _ = hostile
    assert len(page.scripts) == 3
    assert all(link.startswith("data:image/") for link in page.links)
    assert page.tags.count("img") == 1  # the contact sheet; the pictures of objects are made by the script
    assert page.tags.count("table") == 5  # quality, differences, time, equal cost, training
    assert "{{" not in page.text.replace("{{data}}", "")


def test_names_from_outside_stay_text(hostile: tuple[Page, Bench]) -> None:
    page, _ = hostile
    labels = [line["label"] for line in page.data["series"]["cells"]]
    assert labels == ["undistilled", *HOSTILE]
    assert [row["label"] for row in page.data["rows"]] == [f"{name}, 1 step" for name in HOSTILE]
    assert page.tags.count("b") == page.text.count("<b>")  # the parser saw as many as were written as HTML
    assert "<!--" not in page.scripts[0]
    assert "<script>alert" not in page.text


def test_the_numbers_of_the_charts_are_those_of_the_summary(hostile: tuple[Page, Bench]) -> None:
    page, found = hostile
    lines = {(line.label, line.steps): line for line in found.report.lines if line.metric == "w2"}
    series = {line["label"]: line["points"] for line in page.data["series"]["cells"]}
    point = next(one for one in series["perfect"] if one["steps"] == 2)
    line = lines["perfect", 2]
    ends = line.bounds()
    assert point["values"]["w2"] == [line.value, ends["low"], ends["high"]]
    assert page.data["measures"][0] == {"name": "w2", "words": "w2", "better": "lower", "signed": False}
    assert page.data["levels"][0]["label"] == "teacher, 25 steps"


def test_a_method_of_several_budgets_has_a_line_against_training(tmp_path: Path) -> None:
    students = [("small", Gaussian(0.3), info()), ("big", Gaussian(0.0), info()), ("alone", Gaussian(0.0), info("cm"))]
    found = bench(tmp_path / "b", students=students, steps=(1, 2), seeds=(0,), limit=4)
    for line in found.report.lines:  # what training took, which these networks were spared
        object.__setattr__(line, "evaluations", {"small": 1e4, "big": 8e4, "alone": 2e4}.get(line.label))
    (line,) = written(found, Points(), ["teacher"]).data["series"]["budget"]
    assert line["label"] == "perfect"
    assert [(point["name"], point["budget"]) for point in line["points"]] == [
        ("small, 1 step", 1e4),
        ("big, 1 step", 8e4),
    ]


def test_models_are_whole_and_lie_beside_the_page(hostile: tuple[Page, Bench]) -> None:
    page, found = hostile
    exhibits = page.data["exhibits"]
    assert len(exhibits) == 2
    assert exhibits[0]["models"][-1] == ""
    content = gzip.decompress(base64.b64decode(exhibits[1]["models"][0]))
    mesh = trimesh.load(io.BytesIO(content), file_type="glb", force="mesh")
    assert mesh.is_watertight
    folder = found.report.folder / "objects"
    names = {path.name for path in (folder / "object-1").iterdir()}
    assert len(names) == 1 + 1 + len(HOSTILE) - 1  # picture, truth, and what each but the last row made
    assert {path.name for path in folder.iterdir()} == {"object-0", "object-1"}
    assert all(re.fullmatch(r"[\w.-]+", name) for name in names)


def test_the_smallest_bench_has_a_page(tmp_path: Path) -> None:
    found = bench(tmp_path / "b", students=[], steps=(1,), seeds=(0,), limit=2)
    solids = Solids()
    solids.count = 1
    page = written(found, solids, ["teacher"])
    assert len(page.data["exhibits"]) == 1
    assert page.data["interval"] == "A single seed has no intervals."
    flat = written(found, Points(), ["teacher"])
    assert flat.data["exhibits"] == []
    assert len(flat.text) < 200_000  # without the viewer


def test_a_page_that_would_be_too_large_says_what_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert LIMIT < 15e6
    found = bench(tmp_path / "b", students=[], steps=(1,), seeds=(0,), limit=2)
    monkeypatch.setattr("fewstep.benchmark.page.LIMIT", 1)
    page = written(found, Solids(), ["teacher", "b"])
    assert len(page.data["exhibits"]) == 1
    assert "1 object more would make the page too large" in page.text
    assert len(list((tmp_path / "b" / "objects").iterdir())) == 2  # as files all of them


def test_the_structures_of_a_suite_can_be_turned() -> None:
    tested = suite(azimuths=[10.0 * at for at in range(COUNT)])
    grids = tested.truth.clone()
    grids[1] = False  # nothing came out
    made = Shapes(grids, torch.zeros(COUNT, 1), tested.views)
    exhibits = tested.gallery([("teacher", made)], COUNT)
    assert sorted(int(one.name.split()[1]) for one in exhibits) == list(range(1, COUNT + 1))
    for exhibit in exhibits:
        number = int(exhibit.name.split()[1]) - 1
        assert exhibit.azimuth == 10.0 * number
        assert (exhibit.models[0] == b"") == (number == 1)
        truth = trimesh.load(io.BytesIO(exhibit.truth), file_type="glb", force="mesh")
        assert len(truth.faces) > 20


def test_the_page_of_a_bench_that_ended(tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": (1, 2), "seeds": (0,), "limit": 4}
    first = bench(tmp_path / "b", **options)
    assert not (tmp_path / "b" / "report.html").exists()
    assert first.suite.strips == ["teacher, 25 steps", "undistilled, 1 step", "perfect, 1 step", "perfect, 2 steps"]
    assert (tmp_path / "b" / "strip.png").is_file()
    rows = (tmp_path / "b" / "rows.csv").read_text()
    bench(tmp_path / "b", suite=Solids(), resume=True, report=True, **options)
    page = Page(tmp_path / "b" / "report.html")
    assert (tmp_path / "b" / "rows.csv").read_text() == rows
    assert [page.data["rows"][row]["label"] for row in page.data["overview"]] == first.suite.strips
    assert len(page.data["exhibits"][0]["models"]) == len(page.data["rows"])


def test_a_command_writes_the_page_of_a_suite_without_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["bench", "-b", "toy", "--steps", "1", "--seeds", "0", "--limit", "16", "-o", "b", "teacher_steps=2"]
    assert main([*command, "--report"]) == 0, capsys.readouterr().err
    assert Page(Path("b/report.html")).data["exhibits"] == []
    assert Path("b/strip.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_turns_and_sorts(hostile: tuple[Page, Bench], tmp_path: Path) -> None:
    """Headless Chromium: no error, a picture in every pane, keys turn all of them, a click on a heading sorts."""
    page = hostile[0]
    script = """
      const panes = [...document.querySelectorAll("#panes canvas")];
      const seen = () => panes.map((canvas) => canvas.toDataURL());
      await until(() => panes.length && panes.every(dark));
      const before = seen();
      panes[0].dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowLeft"}));
      await until(() => seen().every((one, at) => one !== before[at]));
      const head = [...document.querySelectorAll("th button")].find((one) => one.textContent.startsWith("w2"));
      const column = head.parentNode.cellIndex;
      const values = () => [...head.closest("table").querySelectorAll("td")].filter((one) => one.cellIndex === column)
        .map((one) => parseFloat(one.textContent)).filter((one) => one === one);
      head.click();
      const up = values();
      head.click();
      return {panes: panes.length, up, down: values(), charts: document.querySelectorAll("#panels svg").length,
        legend: [...document.querySelectorAll("#legend li")].map((one) => one.textContent),
        numbers: ["47,952", "810", "<0.001", "+1.5e-05 \u00b12", "1*", "62 %", "1 step"]
          .map((textContent) => sortable({textContent})),
        logarithmic: [[1, 7.9], [1, 8.1], [0, 9], [-1, 9]].map((values) => valueAxis(values, values, true).log),
        places: [0, 1 / 1.3, 10, 130].map(valueAxis([1, 100], [-5, 300], true).place),
        trouble: document.getElementById("trouble").hidden};
    """
    with Browser(page.path.as_uri(), tmp_path / "profile", (1400, 3000)) as browser:
        said = browser.run(script)
        assert np.asarray(browser.picture().convert("L")).std() > 10
        assert browser.errors == []
    assert (said["panes"], said["charts"], said["trouble"]) == (2, 2, True)
    assert said["up"] == sorted(said["up"])
    assert said["down"] == sorted(said["up"], reverse=True)
    assert said["numbers"] == [47952, 810, 0.001, 1.5e-05, 1, 62, 1]
    assert said["logarithmic"] == [False, True, False, False]
    at_zero, bottom, middle, top = said["places"]  # an interval down to 0 ends at the axis
    assert (at_zero, middle) == pytest.approx((bottom, (bottom + top) / 2))
    assert said["legend"][1:-1][: len(HOSTILE)] == list(HOSTILE)
