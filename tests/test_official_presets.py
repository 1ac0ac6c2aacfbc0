"""MDT-dist's published configs: they resolve as they are, hold the published values, and train both stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_helpers import resolve
from fewstep_trellis.checkpoint import load_model, save_model
from fewstep_trellis.models import SLatFlowModel, SparseStructureFlowModel
from official_root import CHANNELS, make_root

from fewstep.cli import main
from fewstep.config.resolve import resolve_stages
from fewstep.config.run import Resolved
from fewstep.errors import FewstepError

WIDTH = 32  # of a DINOv2 token
NETWORK = {"model_channels": 32, "num_blocks": 1, "num_heads": 2, "patch_size": 2, "qk_rms_norm": True}
SPARSE = {"num_io_res_blocks": 1, "io_block_channels": [16]}


def resolved(stage: str, *keys: str) -> Resolved:
    found = resolve_stages("mdt-vd", "trellis", stage, f"mdt-dist/{stage}", keys)
    return found[stage]


@pytest.mark.parametrize(("stage", "steps", "lr"), [("ss", 6000, 4e-8), ("slat", 4000, 1e-8)])
def test_published_values(stage: str, steps: int, lr: float) -> None:
    found = resolved(stage)
    train, objective, data = found.config.train, found.config.objective, found.config.data
    assert (train.steps, train.lr, train.batch_size * train.accumulate) == (steps, lr, 256)
    assert (train.weight_decay, train.clip, train.ema, train.export) == (0.0, "adaptive", (0.9999,), 0.9999)
    assert (objective.kind, objective.interval, objective.d_norm, objective.p_uncond) == (
        "discrete",
        0.01,
        "sample",
        0.0,
    )
    assert (objective.guidance_vm, objective.guidance_vd) == (40.0, 100.0)
    assert (objective.lambda_vm, objective.lambda_vd, objective.vd_factor) == (1.0, 1.0, False)
    assert (objective.t.kind, objective.t.mean, objective.t.std) == ("logit-normal", 1.0, 1.0)
    assert (found.dataset.name, data.min_aesthetic, data.image_size) == (f"trellis-{stage}", 4.5, 518)
    assert str(found.config.backbone.teacher).startswith(f"microsoft/TRELLIS-image-large/ckpts/{stage}_flow_img_dit_L_")
    if stage == "slat":
        assert (data.max_voxels, data.normalisation) == (32768, "teacher")
        assert len(found.config.backbone.normalisation.mean) == CHANNELS
    else:
        assert data.normalisation is None


def test_dry_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    base = ["distill", "--method", "mdt-vd", "--backbone", "trellis"]
    assert main([*base, "--stage", "slat", "--preset", "mdt-dist/slat", "--dry-run"]) == 2  # it shows all, then refuses
    out, refused = capsys.readouterr()
    assert "data.roots: got ''; accepted: folders with a metadata.csv" in refused
    assert "preset mdt-dist/slat (fewstep_mdt)" in out
    assert "preset mdt-dist/slat (fewstep_trellis)" in out
    assert main([*base, "--stage", "both", "--preset", "mdt-dist", "--dry-run"]) == 2
    out = capsys.readouterr().out
    assert "preset mdt-dist/ss" in out
    assert "preset mdt-dist/slat" in out


def test_without_data_the_refusal_comes_before_anything_is_loaded_or_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    code = main(["distill", "-m", "mdt-vd", "-b", "trellis", "--stage", "ss", "--preset", "mdt-dist/ss", "--out", out])
    assert code == 2
    assert "data.roots: got ''; accepted: folders with a metadata.csv" in capsys.readouterr().err
    assert not Path(out).exists()


def test_a_data_set_is_named_by_preset_file_or_option(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('dataset = "trellis-ss"\n[data]\nroots = "a,b"\n')
    found = resolve("mdt-vd", "trellis", None, [file])
    assert found.dataset.name == "trellis-ss"
    assert found.config.data.roots == (Path("a"), Path("b"))
    assert resolve("mdt-vd", "trellis").dataset.name == "sweethome3d"
    file.write_text('dataset = "trellis-ss"\n')
    assert resolve("mdt-vd", "trellis", None, [file], dataset="sweethome3d").dataset.name == "sweethome3d"
    file.write_text("dataset = 3\n")
    with pytest.raises(FewstepError, match=r"dataset \(from .*run\.toml\): got 3"):
        resolve("mdt-vd", "trellis", None, [file])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny teacher of each stage in the official format, a tiny DINOv2, and a data root."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    folder = tmp_path_factory.mktemp("official")
    torch.manual_seed(0)
    shape = {"in_channels": CHANNELS, "out_channels": CHANNELS, "cond_channels": WIDTH, **NETWORK}
    save_model(shaken(SparseStructureFlowModel(resolution=4, **shape)), folder / "ss_flow")
    save_model(shaken(SLatFlowModel(resolution=8, **shape, **SPARSE)), folder / "slat_flow")
    config = Dinov2WithRegistersConfig(
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        num_register_tokens=4,
    )
    Dinov2WithRegistersModel(config).save_pretrained(folder / "dino")
    make_root(folder / "root", 12)
    return folder


def shaken(model: torch.nn.Module) -> Any:
    """The layers that start at zero moved away from it: a network that predicts nothing would teach nothing."""
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize("stage", ["ss", "slat"])
def test_a_tiny_version_trains(stage: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = {
        "backbone.teacher": place / f"{stage}_flow",
        "data.roots": place / "root",
        "data.encoder": place / "dino",
        "data.image_size": 28,
        "train.steps": 2,
        "train.batch_size": 3,
        "train.accumulate": 2,
        "train.lr": 1e-3,
        "train.export": "student",
        "train.log_every": 1,
        "train.threads": 1,
    } | ({"data.voxel_budget": 220} if stage == "slat" else {})
    words = [f"{key}={value}" for key, value in keys.items()]
    command = ["distill", "-m", "mdt-vd", "-b", "trellis", "--stage", stage, "--preset", f"mdt-dist/{stage}"]
    code = main([*command, "--out", str(tmp_path / "run"), *words])
    out = capsys.readouterr()
    assert code == 0, out.out + out.err
    assert "Cond rendered: 12" in out.out  # the statistics of the roots are said
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 2
    assert all(set(loss) == {"vm", "vd"} and min(loss.values()) > 0 for loss in losses)
    student, teacher = load_model(tmp_path / "run/student/model"), load_model(place / f"{stage}_flow")
    moved = [not torch.equal(a, b) for a, b in zip(student.parameters(), teacher.parameters(), strict=True)]
    assert sum(moved) > 0.9 * len(moved)
    assert json.loads((tmp_path / "run/student/config.json").read_text())["dataset"] == f"trellis-{stage}"


@pytest.mark.parametrize("method", ["mdt-vm", "cm", "pcm"])
def test_every_method_has_the_published_data_and_teacher(method: str) -> None:
    other = resolve_stages(method, "trellis", "both", "mdt-dist", ["data.roots=x"])
    published = resolve_stages("mdt-vd", "trellis", "both", "mdt-dist", ["data.roots=x"])
    for stage, one in published.items():
        assert other[stage].dataset == one.dataset
        assert other[stage].tables()["data"] == one.tables()["data"]
        assert other[stage].tables()["backbone"] == one.tables()["backbone"]
