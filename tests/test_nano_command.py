"""``fewstep teach --stage slat`` from catalogues to a pipeline folder: a few boxes, two steps of each training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fewstep_shapes3d.data.prepare import prepare_sweethome3d
from fewstep_shapes3d.data.targets import load_target
from fewstep_trellis.checkpoint import load_model
from fewstep_trellis.teach.command import STAGES
from test_data_prepare import obj, write_sh3f

from fewstep.cli import main


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("open3d", exc_type=ImportError)
    pytest.importorskip("trimesh")
    folder = tmp_path_factory.mktemp("teach")
    boxes = {f"box{k}": obj([(0, 0, 0, 1, 0.15 * k, 1 - 0.15 * k)]) for k in range(1, 7)}
    write_sh3f(folder / "a.sh3f", boxes)
    prepare_sweethome3d(folder, folder / "set", resolution=16, views=1, channels=8, seed=1, test_clusters=2, workers=1)
    return folder


def teach(prepared: Path, out: Path, *words: str) -> int:
    keys = [f"root={prepared / 'set'}", f"targets={prepared / 'targets'}", f"source={prepared}", "workers=1"]
    return main(["teach", "--out", str(out), *words[:2], *keys, *words[2:]])


SMALL = (
    "slat_vae.steps=2",
    "slat_vae.voxels=30",
    "slat_mesh.steps=2",
    "slat_mesh.voxels=30",
    "slat_gs.steps=2",
    "slat_gs.width=16",
    "slat_gs.voxels=60",
)
FLOW = ("slat_flow.width=24", "slat_flow.blocks=1", "train.steps=2", "train.batch_size=2", "train.warmup=1")


def test_from_catalogues_to_a_pipeline_folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    assert teach(prepared, out, "--stage", "slat", *SMALL, *FLOW, "measure_objects=2", "guidances=[1.0, 3.0]") == 0
    target = load_target(prepared / "targets", 0)
    assert target.distance.min() < 0 < target.distance.max()
    assert target.corners.max() <= 64
    described = json.loads((out / "pipeline.json").read_text())["args"]
    for role, name in described["models"].items():
        if role.startswith("slat"):
            load_model(out / name)
    assert len(described["slat_normalization"]["mean"]) == 8
    quality = json.loads((out / "slat_vae_quality.json").read_text())
    assert quality["objects"] == 2
    assert quality["slat_vae"]["steps"] == 2
    rows = json.loads((out / "slat_quality.json").read_text())["rows"]
    assert [row["guidance"] for row in rows] == [1.0, 3.0]
    best = min(rows, key=lambda row: row["colour_error_own_picture"])["guidance"]
    assert described["slat_sampler"]["params"]["cfg_strength"] == best - 1
    before = (out / "slat_encoder.safetensors").read_bytes()
    assert teach(prepared, out, "--stage", "slat-vae", *SMALL) != 0
    assert (out / "slat_encoder.safetensors").read_bytes() == before, "nothing is overwritten"


def test_structure_stage_from_a_prepared_set_to_its_measure(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    small = (
        "vae.steps=2",
        "decoder.steps=2",
        "vae.channels=[4, 8, 8]",
        "flow.width=24",
        "flow.blocks=1",
        "guidances=[1.0]",
    )
    train = ("train.steps=2", "train.batch_size=2", "train.warmup=1")
    assert teach(prepared, out, "--stage", "all", "--device", "cpu", *small, *train) == 0
    for name in ("ss_encoder", "ss_decoder", "ss_flow"):
        load_model(out / name)
    quality = json.loads((out / "quality.json").read_text())
    assert quality["reconstruction"].keys() == {"test_iou", "train_iou", "noisy_iou"}
    (row,) = quality["rows"]
    assert row["guidance"] == 1.0
    assert row["objects"] == 2
    assert json.loads((out / "flow" / "config.json").read_text())["config"]["train"]["device"] == "cpu"
    said = capsys.readouterr().out
    assert "encoding latents" in said
    keys = f"data.encoder={out}/ss_encoder backbone.teacher={out}/ss_flow backbone.decoder={out}/ss_decoder"
    assert f"to distil it: fewstep distill --method NAME --backbone trellis data.root={prepared}" in said
    assert keys in said
    assert teach(prepared, out, "--stage", "vae", "--device", "abacus") != 0
    assert "--device: got 'abacus'" in capsys.readouterr().err


def test_refusals_name_what_is_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["teach", "--stage", "slat-vea", "--out", str(tmp_path)]) != 0
    assert "slat-vae" in capsys.readouterr().err
    assert set(STAGES) > {"targets", "slat-vae", "slat-gs", "slat-flow", "slat"}
