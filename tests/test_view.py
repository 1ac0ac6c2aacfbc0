"""``fewstep view``: which page a result has, what is in it, what is refused."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from browser import CHROMIUM, Browser
from conftest import refusal
from fewstep_shapes3d.export.glb import glb
from fewstep_shapes3d.mesh.voxels import voxel_mesh
from fewstep_shapes3d.view import command, page
from fewstep_shapes3d.view.page import page_of
from PIL import Image
from test_report import Page

from fewstep.benchmark.page import PICTURE, TRUTH
from fewstep.cli import main
from fewstep.errors import FewstepError


def box(side: int) -> bytes:
    grid = torch.zeros(8, 8, 8, dtype=torch.bool)
    grid[2 : 2 + side, 2:4, 2:4] = True
    return glb(voxel_mesh(grid), normals=False)


def models(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for side, name in enumerate(names, 1):
        (folder / name).write_bytes(box(side))
    return folder


def unpacked(texts: Sequence[str]) -> list[bytes]:
    return [gzip.decompress(base64.b64decode(text)) if text else b"" for text in texts]


def test_a_file(tmp_path: Path) -> None:
    models(tmp_path, "chair <b>.GLB")
    written = page_of(tmp_path / "chair <b>.GLB")
    assert written == tmp_path / "chair <b>.view.html"
    found = Page(written)
    assert len(found.scripts) == 3
    assert found.links == []  # it asks for nothing
    assert "fewstep bench" not in found.text
    assert {"table", "img", "b"}.isdisjoint(found.tags)
    (exhibit,) = found.data["exhibits"]
    assert unpacked(exhibit["models"]) == [box(1)]
    assert (exhibit["picture"], exhibit["truth"], found.data["measures"]) == ("", "", [])


def test_a_folder_of_files_and_one_of_folders(tmp_path: Path) -> None:
    flat = models(tmp_path / "flat", "b.glb", "a.glb", f"{TRUTH}.glb", "notes.txt")
    found = Page(page_of(flat)).data
    assert [row["label"] for row in found["rows"]] == ["a", "b"]
    assert unpacked(found["exhibits"][0]["models"]) == [box(2), box(1)]
    assert unpacked([found["exhibits"][0]["truth"]]) == [box(3)]
    deep = tmp_path / "deep"
    models(deep / "one", "mdt-vd.glb", "teacher.glb")
    models(deep / "two", "teacher.glb", "cm.glb")
    models(deep / ".hidden", "x.glb")
    Image.new("RGB", (4, 4)).save(deep / "two" / PICTURE)
    found = Page(page_of(deep)).data
    assert [row["label"] for row in found["rows"]] == ["mdt-vd", "teacher", "cm"]
    assert [one["name"] for one in found["exhibits"]] == ["one", "two"]
    assert unpacked(found["exhibits"][1]["models"]) == [b"", box(1), box(2)]
    assert [bool(one["picture"]) for one in found["exhibits"]] == [False, True]
    assert found["overview"] == [0, 1, 2]


def test_too_much_is_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "LARGEST", len(box(1)) + 10)
    found = Page(page_of(models(tmp_path / "many", "a.glb", "b.glb", "c.glb")))
    assert [row["label"] for row in found.data["rows"]] == ["a"]
    assert "2 models more would make the page too large." in found.text


def test_a_bench_has_its_own_page(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("")
    with pytest.raises(FewstepError, match="--resume --report writes the page"):
        page_of(tmp_path)
    (tmp_path / "report.html").write_text("own")
    assert page_of(tmp_path) == tmp_path / "report.html"
    assert (tmp_path / "report.html").read_text() == "own"


@pytest.mark.slow
def test_a_run_shows_what_its_student_makes(tmp_path: Path) -> None:
    from fewstep_trellis.shipped import shipped_students

    run = tmp_path / "run"
    run.mkdir()
    (run / "student").symlink_to(shipped_students()["mdt-vd"])
    found = Page(page_of(run, "cpu")).data
    assert [row["label"] for row in found["rows"]] == ["mdt-vd, 1 step", "mdt-vd, 2 steps", "mdt-vd, 4 steps"]
    assert len(found["exhibits"]) == page.ABREAST
    for one in found["exhibits"]:
        assert all(model[:4] == b"glTF" for model in unpacked([one["truth"], *filter(None, one["models"])]))
        assert one["picture"].startswith("data:image/png")


@pytest.mark.parametrize(
    ("name", "text"), [("none", "nothing of this name"), ("a.txt", "a file"), ("empty", "nothing to look at")]
)
def test_what_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("a.txt").write_text("")
    assert text in refusal(main(["view", name, "--no-open"]), *capsys.readouterr())
    assert not list(tmp_path.rglob("*.html"))


def test_the_command_opens_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(command, "open_page", opened.append)
    models(tmp_path, "a.glb")
    assert main(["view", str(tmp_path), "--no-open"]) == 0
    assert opened == []
    assert main(["view", str(tmp_path)]) == 0
    assert opened == [(tmp_path / "view.html").as_uri()]
    assert capsys.readouterr().out == f"page: {tmp_path / 'view.html'}\n" * 2


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_models_of_any_size_with_their_textures(tmp_path: Path) -> None:
    """A box of 40 units far away, with a red texture and no vertex colours, fills half of its pane with red."""
    shape: Any = trimesh.creation.box((40, 40, 40))
    shape.apply_translation((100, 0, 0))
    image = Image.new("RGB", (8, 8), (220, 20, 20))
    shape.visual = trimesh.visual.TextureVisuals(np.zeros((8, 2)), image=image)
    shape.export(tmp_path / "box.glb")
    written = page_of(tmp_path / "box.glb")
    with Browser(written.as_uri(), tmp_path / "profile", (900, 700)) as browser:
        browser.run("await until(() => [...document.querySelectorAll('canvas')].some(dark));")
        red, green, blue = np.asarray(browser.picture()).astype(int).transpose(2, 0, 1)
    seen = (red > 80) & (red > 2 * green) & (red > 2 * blue)
    assert 50_000 < seen.sum() < 200_000  # of the 480 x 480 of its pane
