"""TRELLIS's data sets against the recorded ones, and that the runner sees a wrong item, table, picture and order."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.run import main
from PIL import Image
from safetensors.torch import load_file, save_file

DATA = Path(__file__).parent / "golden" / "data"
ALPHA = "8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8"


def test_recorded_data_sets(capsys: pytest.CaptureFixture[str]) -> None:
    code = main([str(DATA), "--only", "dataset/"])
    out = capsys.readouterr().out
    assert code == 0, out
    assert "66 cases, 208 comparisons, 0 off" in out
    assert "not supported" not in out


def nudge(key: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "items_a.safetensors")
        tensors[key].view(-1)[0] += 1
        save_file(tensors, folder / "items_a.safetensors")

    return change


def cell(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "root_a1/metadata.csv"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


def record(file: str, edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        values = json.loads((folder / file).read_text())
        edit(values)
        (folder / file).write_text(json.dumps(values))

    return change


def dot(folder: Path) -> None:
    """One pixel of a condition picture."""
    for path in (folder / "root_a1/renders_cond" / ALPHA).glob("*.png"):
        pixels = np.array(Image.open(path))
        y, x = np.argwhere(pixels[..., 3] == 255)[0]
        pixels[y, x, 0] ^= 64
        Image.fromarray(pixels).save(path)


def first_group(values: dict[str, Any]) -> None:
    values["groups"][0]["groups"].reverse()


def a_rank(values: dict[str, Any]) -> None:
    values["cases"][-1]["ranks"][0].reverse()


@pytest.mark.parametrize(
    ("only", "change"),
    [
        ("ss_image", nudge("ss_image.1.x_0")),
        ("slat_image", nudge("slat_image.3.coords")),
        ("slat_image-collate", nudge("slat_image.collate_2.1.coords")),
        ("slat_text", cell("4.2", "5.2")),
        ("slat_text", cell("a lamp on a table", "a lamp on a chair")),
        ("slat_image_strict", cell("True,25", "True,81")),
        ("feat2render_32", nudge("feat2render_32.0.feats")),
        ("feat2render_32", nudge("feat2render_32.0.extrinsics")),
        ("structure", nudge("structure.1.ss_coords")),
        ("ss_image", dot),
        ("slat_image", record("items_a.json", lambda r: r["datasets"]["slat_image"]["samples"][3]["draws"].pop(0))),
        ("groups-0", record("samplers_a.json", first_group)),
        ("44-Balanced", record("samplers_a.json", a_rank)),
    ],
)
def test_what_is_wrong_is_seen(tmp_path: Path, only: str, change: Callable[[Path], None]) -> None:
    folder = tmp_path / "dataset"
    shutil.copytree(DATA / "dataset", folder)
    assert main([str(tmp_path), "--only", f"_a/{only}"]) == 0
    change(folder)
    assert main([str(tmp_path), "--only", f"_a/{only}"]) == 1
