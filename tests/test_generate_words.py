"""``fewstep generate``: names, texts and folders of every kind are taken for what they are."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from fewstep_trellis.generate.inputs import jobs_of
from fewstep_trellis.generate.outputs import format_of, targets
from pipeline_helpers import Go, picture, refused

from fewstep.cli.options import home
from fewstep.errors import FewstepError
from fewstep.files import file_suffix

LONG = "a wooden chair " * 30


def test_a_long_text_is_no_file_name(go: Go) -> None:
    picture(Path("disc.png"))
    assert "--student: got " in refused(go("disc.png", "--student", LONG))
    assert "--teacher: got " in refused(go("disc.png", teacher=LONG))
    assert "there is nothing of this name" in refused(go(LONG))
    assert "got a name of 450 bytes; accepted: at most 200" in refused(go("disc.png", "-o", LONG))
    (job,) = jobs_of([LONG], "text")
    assert job.label == "a wooden chair a wooden chair a wooden chair a wooden ..."
    assert job.name == "a-wooden-chair-a-wooden-chair-a-wooden-chair-a-w"


def test_nothing_is_no_name(go: Go) -> None:
    """An empty text is this folder to ``Path``."""
    picture(Path("disc.png"))
    for arguments in (
        [""],
        [" "],
        ["disc.png", "-o", ""],
        ["disc.png", "--student", ""],
        ["disc.png", "--sampler", ""],
    ):
        assert "accepted: " in refused(go(*arguments))
    assert "--teacher: got ''" in refused(go("disc.png", teacher=""))
    assert [path.name for path in Path().iterdir()] == ["disc.png"]


def test_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder) -> None:
    monkeypatch.chdir(tmp_path)
    Path("chair").mkdir()
    texts = [
        "-a red/blue chair\nwith arms",
        "chair",
        "A chair!",
        "a chair",
        "~",
        "*?[x]",
        "椅子",
        "..",
        LONG,
        LONG + "x",
    ]
    jobs = jobs_of(texts, "text")
    assert [job.text for job in jobs] == texts
    assert len({job.name for job in jobs}) == len(texts)
    assert all(job.name and not set(job.name) & set("/\n~*?.") for job in jobs)
    assert "the folder of this name is not read" in str(recwarn.pop(UserWarning).message)
    for mistaken in ("chair.png", "notes"):
        Path("notes").write_text("x")
        with pytest.raises(FewstepError, match="--text takes any text"):
            jobs_of([mistaken], "text")
        assert jobs_of([], "text", texts=[mistaken])[0].text == mistaken
    assert jobs_of(["a chair like in photo.png"], "text")


def test_pictures_whose_names_are_alike_have_files_of_their_own(go: Go) -> None:
    Path("in").mkdir()
    for name in ("a.png", "A.webp", "b.png", "椅子.png", "a.rf.png", "x" * 240 + ".png"):
        picture(Path("in") / name)
    done = go("in", "-o", "out", "--formats", "npz")
    assert done.code == 0, done.err
    names = sorted(path.name for path in Path("out").iterdir())
    assert names == sorted(["A-webp.npz", "a-png.npz", "b.npz", "椅子.npz", "a.rf.npz", "x" * 200 + ".npz"])
    assert "latents" in np.load("out/a.rf.npz"), "arrays, as asked for, and no radiance field"


def test_previews_are_no_pictures(go: Go) -> None:
    picture(Path("disc.png"))
    for _ in range(2):
        done = go(".", "-o", ".", "--formats", "ply", "--force")
        assert done.code == 0, done.err
        assert sorted(path.name for path in Path().iterdir()) == ["disc.ply", "disc.png", "disc.preview.png"]
    assert "disc.preview.png: left out, a preview that fewstep wrote" in done.err
    assert "left out" in go("disc.png", "disc.preview.png", "-o", "x.ply").err
    assert "no input" in refused(go("disc.preview.png"))


@pytest.mark.parametrize(
    ("out", "suffix"),
    [
        ("out_v1.0", ""),
        ("out.v2", ""),
        ("out.final/", ""),
        ("a.b/out", ""),
        (".", ""),
        ("..", ""),
        ("out.", ""),
        ("x.GLB", ".glb"),
        ("x.tar.gz", ".gz"),
        ("x.mp4", ".mp4"),
    ],
)
def test_what_is_the_suffix_of_a_file(out: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert file_suffix(out) == suffix


def test_where_results_go(go: Go, tmp_path: Path) -> None:
    picture(Path("disc.png"))
    jobs = jobs_of(["disc.png"], "image")

    def places(out: str, *suffixes: str) -> list[str]:
        return [str(path) for target in targets(jobs, out, 1) for path in target.paths(suffixes)]

    assert places("out_v1.0", ".glb") == ["out_v1.0/disc.glb"]
    assert places("x.GLB", ".glb", ".npz") == ["x.GLB", "x.npz"]
    assert places("x.rf.npz", ".rf.npz") == ["x.rf.npz"]
    assert places("x.y.ply", ".ply") == ["x.y.ply"]
    assert format_of("x.rf.npz") == "rf"
    for out in ("s.xyz", "s.gltf", "s.png"):
        assert "ending in .glb, .ply or .npz" in refused(go("disc.png", "-o", out))
    Path("link.ply").symlink_to("disc.png")
    assert "is an input" in refused(go("disc.png", "-o", "link.ply", "--force"))
    Path("loop.ply").symlink_to("loop.ply")
    assert "a link to loop.ply" in refused(go("disc.png", "-o", "loop.ply"))


def test_the_home_folder_is_spelled_out(go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    picture(tmp_path / "disc.png")
    assert f"would write {tmp_path}/out/disc.glb" in go("~/disc.png", "--out=~/out", "--dry-run").out
    assert [home(text) for text in ("~", "~ a chair", None)] == ["~", "~ a chair", None]


def test_folders_and_links_of_odd_names(go: Go) -> None:
    folder = Path("[a] {b}*")
    folder.mkdir()
    os.link(picture(Path("disc.png")), folder / "one.png")
    (folder / "two.png").symlink_to(Path("../disc.png"))
    (folder / "gone.png").symlink_to("nowhere.png")
    done = go(folder, "-o", "out", "--formats", "npz")
    assert done.code == 1
    assert "failed: [a] {b}*/gone.png: " in done.err
    assert "2 made, 1 failed" in done.err
