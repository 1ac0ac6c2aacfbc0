"""Our models, samplers and objectives against the recorded numbers, and that the runner sees a wrong one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from golden.cases import relative
from golden.run import main
from safetensors.torch import load_file, save_file

DATA = Path(__file__).parent / "golden" / "data"


@pytest.mark.parametrize("part", ["models", "samplers", "statedict", "mesh", "export", "trellis2/pipeline"])
def test_recorded_numbers(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main([str(DATA), "--only", part + "/"])
    assert code == 0, capsys.readouterr().out
    out = capsys.readouterr().out
    assert "not supported" not in out
    assert " 0 cases" not in f" {out}"


def copy(tmp_path: Path, *names: str) -> Path:
    """A folder of the same layout with some of the records."""
    for name in names:
        for source in DATA.glob(f"{name}.*"):
            target = tmp_path / source.relative_to(DATA)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    return tmp_path


def nudge(path: Path, key: str, by: float) -> None:
    """Move one number of a tensor file."""
    tensors = load_file(path)
    tensors[key].view(-1)[0] += by
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("name", "key", "by"),
    [
        ("models/ss_flow_a", "state.blocks.1.mlp.mlp.0.weight", 1e-2),
        ("models/ss_flow_a", "state.pos_emb", 1e-2),
        ("models/ss_flow_a2", "output.y", 1e-3),
        ("models/ss_encoder_a", "mid.blocks.2", 1e-2),
        ("models/ss_encoder_a", "state.out_layer.2.bias", 1e-3),
        ("models/ss_decoder_a", "output.y_fp16_torso", 1.0),
        ("models/ss_decoder_a", "state.blocks.1.conv.weight", 1e-2),
        ("models/slat_flow_a", "state.out_blocks.0.conv1.conv.weight", 1e-1),
        ("models/slat_flow_a", "output.feats_fp16_torso", 1.0),
        ("models/slat_flow_a", "mid.coords_torso", 1),
        ("trellis2/samplers/guidance_a", "sparse.case3.pred", 1e-3),
        ("trellis2/samplers/guidance_a", "dense.pos", 1e-2),
    ],
)
def test_a_wrong_number_is_seen(
    tmp_path: Path, name: str, key: str, by: float, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy(tmp_path, name)
    assert main([str(root)]) == 0
    nudge(root / f"{name}.safetensors", key, by)
    assert main([str(root)]) == 1
    assert "OFF" in capsys.readouterr().out


def test_one_wrong_voxel_is_seen(tmp_path: Path) -> None:
    path = copy(tmp_path, "models/ss_decoder_a") / "models/ss_decoder_a.safetensors"
    tensors = load_file(path)
    tensors["output.occupied_coords"] = tensors["output.occupied_coords"][1:].clone()
    save_file(tensors, path)
    assert main([str(tmp_path)]) == 1


@pytest.mark.parametrize("key", ["cfg3_s2.pred_x_t.0", "euler_s25.samples", "noise"])
def test_a_wrong_sampler_number_is_seen(tmp_path: Path, key: str) -> None:
    root = copy(tmp_path, "models/ss_flow_a", "samplers/ss_flow_a")
    nudge(root / "samplers/ss_flow_a.safetensors", key, 0.1)
    only = "cfg3_s2" if key == "noise" else f"/{key.split('.')[0]}"
    assert main([str(root), "--only", only]) == 1


def test_a_wrong_grid_time_is_seen(tmp_path: Path) -> None:
    path = copy(tmp_path, "models/ss_flow_a", "samplers/ss_flow_a") / "samplers/ss_flow_a.json"
    record = json.loads(path.read_text())
    record["cases"]["euler_s2"]["t_seq"][1] += 1e-15
    path.write_text(json.dumps(record))
    assert main([str(tmp_path), "--only", "euler_s2"]) == 1


def test_other_names_and_unknown_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = copy(tmp_path, "models/ss_flow_a2")
    for path in (root / "models").iterdir():
        path.rename(path.with_stem("another"))
    record: dict[str, Any] = {"class": "SLatPointDecoder", "args": {}, "outputs": {}}
    (root / "models" / "sparse.json").write_text(json.dumps(record))
    assert main([str(root)]) == 0
    out = capsys.readouterr().out
    assert "models/another" in out
    assert "models/sparse: not supported yet: class SLatPointDecoder" in out


def test_a_case_that_cannot_run_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = copy(tmp_path, "models/ss_flow_a")
    (root / "models/ss_flow_a.safetensors").unlink()
    assert main([str(root)]) == 1
    assert "did not run" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["missing", "empty", "other", "broken"])
def test_nothing_to_run_is_said_in_one_line(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    if kind == "other":
        (tmp_path / "facts.json").write_text('{"a": 1}')
    if kind == "broken":
        (tmp_path / "facts.json").write_text("{")
    assert main([str(tmp_path / "none" if kind == "missing" else tmp_path)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_only_an_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(DATA), "--only", "models/ss_flow_b"]) == 2
    assert "did you mean 'models/ss_flow_a" in capsys.readouterr().err


def test_relative_error() -> None:
    assert relative(torch.tensor([1.0, 2.1]), torch.tensor([1.0, 2.0])) == pytest.approx(0.05)
    assert relative(torch.zeros(2), torch.zeros(3)) == float("inf")
    assert relative(torch.tensor([float("nan")]), torch.ones(1)) == float("inf")
    assert relative(torch.tensor([1e-9]), torch.zeros(1)) == pytest.approx(1e-9)
