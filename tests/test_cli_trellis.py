"""The command line on the shipped structure flow: a student of one step, sampled from a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import contents, refusal
from fewstep_trellis import suite
from PIL import Image

from fewstep.api.students import Student
from fewstep.cli import main


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run and some pictures."""
    folder = tmp_path_factory.mktemp("trellis")
    run = ("distill", "-m", "mdt-vm", "-b", "trellis", "--out", str(folder / "run"))
    assert main([*run, "train.steps=1", "train.batch_size=1", "train.threads=1"]) == 0
    (folder / "text.png").write_text("no picture")
    Image.new("RGBA", (32, 32)).save(folder / "transparent.png")
    Image.new("RGB", (40, 30), (200, 80, 40)).save(folder / "plain.png")
    whole = (folder / "plain.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.mark.parametrize(
    ("image", "part"),
    [("text.png", "accepted: a picture (PNG, JPEG, WebP)"), ("cut.png", "picture"), ("transparent.png", "transparent")],
)
def test_an_image_that_is_none_is_refused(
    image: str, part: str, made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    before = contents(made)
    code = main(["sample", "run", "--image", image, "--out", "new"])
    out, err = capsys.readouterr()
    message = refusal(code, out, err)
    assert image in message
    assert part in message
    assert contents(made) == before


def test_a_picture_becomes_shapes(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    arguments = ["sample", "run", "--image", "plain.png", "--count", "2", "--out", "shapes_v1.0"]
    code = main(arguments)
    assert "--background keep" in refusal(code, *capsys.readouterr()), "an opaque picture, as in fewstep generate"
    code = main([*arguments, "--background", "keep"])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "2 samples, 1 step, " in out
    with np.load(made / "shapes_v1.0" / "samples.npz") as arrays:
        assert arrays["occupancy"].shape[0] == 2
        assert arrays["occupancy"].dtype == np.bool_
    assert (made / "shapes_v1.0" / "samples.png").stat().st_size > 0


@pytest.mark.parametrize("out", ["s.xyz", "s.glb", "", " ", "s" * 300 + ".png"])
def test_a_file_of_no_kind_is_refused_before_anything_is_sampled(
    out: str, made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    monkeypatch.setattr(Student, "sample", None)
    assert "--out: got " in refusal(main(["sample", "run", "-o", out]), *capsys.readouterr())


def test_shipped_students_are_sampled_by_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what is asked for is encoded: the held-out objects would take seconds."""
    counted: list[int] = []
    plain = suite.encode
    monkeypatch.setattr(suite, "encode", lambda encoder, grids: counted.append(len(grids)) or plain(encoder, grids))
    assert main(["sample", "mdt-vd", "-n", "2", "-o", str(tmp_path / "a.png")]) == 0
    assert "2 samples, 1 step, consistency" in capsys.readouterr().out
    assert counted == [2]
