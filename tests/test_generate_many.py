"""``fewstep generate``: what fails is named, what can be checked is checked first, and the rest goes on."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fewstep_shapes3d.pictures import background
from fewstep_shapes3d.result import Result
from fewstep_trellis.pipeline.loading import Pipeline
from fewstep_trellis.pipeline.run import Runner
from PIL import Image
from pipeline_helpers import Go, picture, refused
from test_generate import python, student

from fewstep.errors import FewstepError


@pytest.fixture
def photos() -> list[str]:
    """Three pictures, the second without transparency; to be called in the folder of ``go``."""
    return ["a.png", "b.jpg", "c.png"]


def write(names: list[str]) -> None:
    for name in names:
        image = Image.new("RGB", (40, 40), "green")
        image.paste("red", (10, 10, 30, 30))
        image.save(name) if name.endswith("jpg") else picture(Path(name))


def remover(monkeypatch: pytest.MonkeyPatch, remove: Any) -> None:
    monkeypatch.setitem(sys.modules, "rembg", SimpleNamespace(remove=remove, new_session=str, __spec__=object()))
    background._session.cache_clear()


def test_a_remover_that_raises_is_about_one_picture(go: Go, photos: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def remove(image: Image.Image, session: object) -> Image.Image:
        raise RuntimeError("onnx says no\nat length")

    remover(monkeypatch, remove)
    write(photos)
    done = go(*photos, "-o", "out", "--formats", "npz")
    assert (done.code, "Traceback" in done.err) == (1, False)
    assert "failed: b.jpg: b.jpg: rembg failed on it (RuntimeError: onnx says no); use the whole picture" in done.err
    assert "2 made, 1 failed" in done.err
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.npz", "c.npz"]
    assert "total" in done.out


def test_memory_that_runs_out_is_about_one_picture(go: Go, photos: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = Runner._structure_latents, []

    def latents(self: Runner, *arguments: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, *arguments)

    monkeypatch.setattr(Runner, "_structure_latents", latents)
    write(photos)
    done = go(*photos, "-o", "out", "--formats", "npz", "--background", "keep")
    assert done.code == 1
    assert "failed: b.jpg: out of memory" in done.err
    assert len(list(Path("out").iterdir())) == 2


def test_an_end_in_the_middle_says_what_was_made(go: Go, photos: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from fewstep_trellis.generate import command

    plain = command.write

    def full(results: Any, target: Any, formats: Any) -> list[Path]:
        if target.stem == "b":
            raise FewstepError("out/b.npz: cannot be written: no space left")
        return plain(results, target, formats)

    monkeypatch.setattr(command, "write", full)
    write(photos)
    done = go(*photos, "-o", "out", "--formats", "npz", "--background", "keep")
    assert "no space left" in refused(done)
    assert "1 made, 0 failed, 2 not tried" in done.err


def test_python_leaves_out_what_fails(go: Go, tiny_pipeline: Path, tiny_encoder: Path) -> None:
    Path("bad.png").write_bytes(b"no picture")
    picture(Path("a.png"))
    make = python(tiny_pipeline, tiny_encoder)
    with pytest.warns(UserWarning, match=r"bad\.png: left out: "):
        assert [one.name for one in make(["bad.png", "a.png"])] == ["a.png"]
    with pytest.raises(FewstepError, match="nothing can be made"), pytest.warns(UserWarning, match="left out"):
        make(["bad.png", Image.new("F", (2, 2))])
    for wrong in ({"samples": 0}, {"seed": -1}, {"samples": 1.5}, {"sampler": ""}, {"encoder": ""}):
        with pytest.raises(FewstepError, match="accepted: "):
            make("a.png", **wrong)


def test_a_dry_run_says_what_would_fail(go: Go, photos: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pipeline, "model", None)
    monkeypatch.setitem(sys.modules, "rembg", None)
    write(photos)
    Path("d.png").write_bytes(b"no picture")
    done = go(*photos, "d.png", "-o", "out", "--dry-run")
    assert done.code == 1
    assert "would fail: b.jpg: b.jpg has no transparency" in done.err
    assert "--background keep" in done.err
    assert "would fail: d.png: " in done.err
    assert done.out.count("would write") == 2
    assert "--background keep" in refused(go("b.jpg", "--dry-run"))
    assert "--background keep" in refused(go("b.jpg"))
    assert "would write generated/b.glb" in go("b.jpg", "--background", "keep", "--dry-run").out
    assert "--device: got 'tpu9'" in refused(go("a.png", "--device", "tpu9", "--dry-run"))


@pytest.mark.parametrize("formats", ["npz", "rf", "npz,ply", "glb"])
def test_a_dry_run_announces_the_files_that_are_written(go: Go, formats: str) -> None:
    picture(Path("disc.png"))
    said = go("disc.png", "-o", "out", "--formats", formats, "-n", "2", "--dry-run").out
    announced = said.partition("would write ")[2].strip().split(", ")
    assert go("disc.png", "-o", "out", "--formats", formats, "-n", "2").code == 0
    assert sorted(announced) == sorted(map(str, Path("out").iterdir()))


def test_the_times_add_up_to_the_whole(go: Go) -> None:
    picture(Path("disc.png"))
    rows = [line.split("│") for line in go("disc.png", "-o", "a.npz").out.splitlines() if line.startswith("│")]
    seconds = {row[1].strip(): float(row[2]) for row in rows}
    total = seconds.pop("total")
    assert "imports and the rest" in seconds
    assert total == pytest.approx(sum(seconds.values()), abs=0.01 * len(seconds))
    assert all(value >= 0 for value in seconds.values())


def test_an_undistilled_flow_in_few_steps_is_said(go: Go, tmp_path: Path) -> None:
    picture(Path("disc.png"))
    folder = student(tmp_path / "slat")
    said = go("disc.png", "--student", folder, "--steps", "1", "--dry-run").err
    assert (
        "warning: structure: no student for this stage; the pipeline's own flow, made for 3 steps, is sampled in 1"
        in said
    )
    assert "latents" not in said
    assert go("disc.png", "--student", "none", "--steps", "1", "--dry-run").err == ""
    assert go("disc.png", "--student", folder, "--dry-run").err == ""


def test_an_interrupted_run_goes_on(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("in").mkdir()
    for name in "abc":
        picture(Path(f"in/{name}.png"))
    asked = ("in", "-o", "out", "--formats", "npz,glb")
    real, calls = Result.save, list[Path]()

    def interrupted(self: Result, path: Path, name: str) -> Path:
        calls.append(path)
        if len(calls) == 4:  # a.npz, a.glb and b.npz are written
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, path, name)

    monkeypatch.setattr(Result, "save", interrupted)
    done = go(*asked)
    assert done.code == 128 + signal.SIGTERM
    assert "1 made, 0 failed, 2 not tried" in done.err
    assert re.search(r"\ninterrupted; finished objects stay; to go on: fewstep generate .* --resume\n$", done.err)
    names = ["a.glb", "a.npz", "a.preview.png", "b.npz"]
    assert sorted(path.name for path in Path("out").iterdir()) == names
    before = {path: path.stat().st_ino for path in Path("out").iterdir()}
    assert "choose one" in refused(go(*asked, "--resume", "--force"))
    assert "would write out/b.npz" in go(*asked, "--resume", "--dry-run").out
    done = go(*asked, "--resume")
    assert done.code == 0, done.err
    assert "--resume: 1 object made before, 2 to make" in done.out
    assert [path.name for path, number in before.items() if path.stat().st_ino != number] == ["b.npz"]  # half of b
    assert len(list(Path("out").iterdir())) == 9
    assert "3 objects made before, 0 to make" in go(*asked, "--resume").out
