"""Students trained on data in TRELLIS's own layout, both stages: the command that ``distill`` prints samples them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import refusal
from official_root import nano_root
from PIL import Image

import fewstep
from fewstep.cli import main

QUICK = ("data.encoder=efficientnet-lite0", "data.image_size=224", "train.steps=1", "train.batch_size=2")
STAGES = {"ss": "trellis", "slat": "trellis-slat"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a root, a run of each stage on it, and a picture."""
    folder = tmp_path_factory.mktemp("official")
    root = nano_root(folder / "root")
    for stage, backbone in STAGES.items():
        words = ("-m", "mdt-vm", "-b", backbone, "-d", f"trellis-{stage}", "--out", str(folder / stage))
        assert main(["distill", *words, f"data.roots={root}", "train.threads=1", *QUICK]) == 0
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[10:50, 20:44] = (200, 80, 40, 255)
    Image.fromarray(pixels).save(folder / "picture.png")
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_conditions_of_the_training_data_become_objects(
    stage: str, made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    assert main(["sample", stage, "--count", "2"]) == 0
    assert "2 samples, 1 step" in capsys.readouterr().out
    made.joinpath("samples.png").rename(f"samples-{stage}.png")
    assert main(["sample", stage, "--count", "1", "--out", f"folder-{stage}"]) == 0
    assert (made / f"folder-{stage}" / "samples.png").stat().st_size > 0


def test_a_picture_is_prepared_as_the_training_data_are(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    assert main(["sample", "ss", "--image", "picture.png", "--count", "2", "--out", "shapes.npz"]) == 0
    with np.load("shapes.npz") as arrays:
        assert arrays["occupancy"].shape == (2, 32, 32, 32)


def test_without_the_training_data_the_backbones_own_make_the_prompts(
    made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (made / "root").rename(tmp_path / "away")
    try:
        student = fewstep.load(made / "ss")
        with pytest.warns(
            UserWarning, match="'trellis-ss' is not available .*this is not a folder.*: the prompts are 'sweethome3d'"
        ):
            latents = student.sample(made / "picture.png", steps=1)
        assert latents.shape == (1, 8, 8, 8, 8)
    finally:
        (tmp_path / "away").rename(made / "root")


def test_what_cannot_be_is_said(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    code = main(["sample", "slat", "--image", "picture.png"])
    assert "fewstep generate" in refusal(code, *capsys.readouterr())
    words = ("-b", "trellis", "-d", "trellis-ss", "--out", "report", "data.roots=root", *QUICK[:2])
    code = main(["bench", *words, "--steps", "1", "--seeds", "0"])
    message = refusal(code, *capsys.readouterr())
    assert "fewstep bench: StructureLatents has no held-out objects; accepted: --dataset sweethome3d" in message
    assert not (made / "report").exists()
