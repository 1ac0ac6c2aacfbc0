"""The official file pair: round trips, prefixes, and one clear error for each thing that can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fewstep_trellis.checkpoint import build_model, load_model, save_model
from fewstep_trellis.models import SparseStructureDecoder, SparseStructureFlowModel
from safetensors.torch import load_file, save_file
from torch import nn

from fewstep.errors import FewstepError

ARGS: dict[str, Any] = {
    "resolution": 2,
    "in_channels": 2,
    "model_channels": 12,
    "cond_channels": 4,
    "out_channels": 2,
    "num_blocks": 1,
    "num_heads": 2,
    "patch_size": 1,
}


@pytest.fixture
def model() -> SparseStructureFlowModel:
    return SparseStructureFlowModel(**ARGS)


@pytest.fixture
def saved(model: SparseStructureFlowModel, tmp_path: Path) -> Path:
    return save_model(model, tmp_path / "deep" / "step.10")


def same(a: nn.Module, b: nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return list(x) == list(y) and all(torch.equal(x[k], y[k]) and x[k].dtype == y[k].dtype for k in x)


@pytest.mark.parametrize("suffix", ["", ".json", ".safetensors"])
def test_round_trip(model: SparseStructureFlowModel, tmp_path: Path, suffix: str) -> None:
    save_model(model, tmp_path / f"step.10{suffix}")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step.10.json", "step.10.safetensors"]
    for ending in ("", ".json", ".safetensors"):
        found = load_model(tmp_path / f"step.10{ending}")
        assert same(model, found)
        assert found.args == model.args
        assert all(p.requires_grad for p in found.parameters())
    config = json.loads((tmp_path / "step.10.json").read_text())
    assert config["name"] == "SparseStructureFlowModel"
    assert config["args"]["model_channels"] == 12


def test_half_files_load_into_float32(model: SparseStructureFlowModel, tmp_path: Path) -> None:
    path = save_model(model, tmp_path / "half", torch.float16)
    assert load_file(path)["input_layer.weight"].dtype == torch.float16
    found = load_model(path)
    assert all(p.dtype == torch.float32 for p in found.parameters())
    assert torch.allclose(found.input_layer.weight, model.input_layer.weight, atol=1e-3)


def test_use_fp16_keeps_the_half_torso(tmp_path: Path) -> None:
    model = SparseStructureDecoder(1, 2, 1, [8, 4], use_fp16=True)
    found = load_model(save_model(model, tmp_path / "decoder"))
    assert same(model, found)
    assert found.blocks[0].conv1.weight.dtype == torch.float16
    assert found.half_torso


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "ema.", "module._orig_mod."])
def test_prefixes_are_removed_and_named(saved: Path, model: SparseStructureFlowModel, prefix: str) -> None:
    save_file({prefix + k: v for k, v in load_file(saved).items()}, saved)
    with pytest.warns(UserWarning, match=f"removed the prefix '{prefix}' from all"):
        found = load_model(saved)
    assert same(model, found)


def test_pt_files_of_plain_tensors(saved: Path, model: SparseStructureFlowModel) -> None:
    state, pt = load_file(saved), saved.with_suffix(".pt")
    saved.unlink()
    torch.save(state, pt)
    assert same(load_model(pt), model)
    torch.save({"state_dict": state, "step": 3}, pt)
    assert same(load_model(saved.with_suffix("")), model)


def test_pt_files_never_run_code(saved: Path, tmp_path: Path) -> None:
    torch.save({"weights": Path("x"), "run": print}, saved.with_suffix(".pt"))
    with pytest.raises(FewstepError, match=r"step\.10\.pt"):
        load_model(saved.with_suffix(".pt"))


def test_all_misfits_in_one_message(saved: Path) -> None:
    state = load_file(saved)
    del state["out_layer.bias"]
    state["out_layer.bais"] = torch.zeros(2)
    state["input_layer.weight"] = torch.zeros(12, 3)
    save_file(state, saved)
    with pytest.raises(FewstepError) as caught:
        load_model(saved)
    text = str(caught.value)
    assert str(saved) in text
    assert "1 missing: out_layer.bias" in text
    assert "1 unknown: out_layer.bais (did you mean 'out_layer.bias'?)" in text
    assert "input_layer.weight [12, 3] instead of [12, 2]" in text


def test_long_lists_are_cut(saved: Path) -> None:
    save_file({"a": torch.zeros(1)}, saved)
    with pytest.raises(FewstepError, match=r"\d+ missing: .* and \d+ more; 1 unknown: a$"):
        load_model(saved)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "a file that exists; there is none here"),
        (b"", r"this one is empty \(0 bytes\)"),
        (b"\x89PNG\r\n not a checkpoint", "a json file|a complete safetensors file"),
        ("half", "a json file|a complete safetensors file"),
    ],
)
def test_broken_files(saved: Path, suffix: str, content: bytes | str | None, message: str) -> None:
    path = saved.with_suffix(suffix)
    whole = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    with pytest.raises(FewstepError, match=message) as caught:
        load_model(saved)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([1], 'a json file with "name"'),
        ({"name": "SparseStructureFlowModel"}, 'a json file with "name"'),
        ({"name": "SparseStructureFlowModle", "args": ARGS}, "did you mean 'SparseStructureFlowModel'"),
        ({"name": "SparseStructureFlowModel", "args": ARGS | {"num_head": 2}}, "did you mean 'num_heads'"),
        ({"name": "SparseStructureFlowModel", "args": {"resolution": 2}}, "missing: in_channels, model_channels"),
        ({"name": "SparseStructureFlowModel", "args": ARGS | {"in_channels": "two"}}, "cannot be built from"),
        ({"name": "SparseStructureFlowModel", "args": ARGS | {"pe_mode": "rope"}}, "pe_mode: got 'rope'"),
    ],
)
def test_wrong_configs(saved: Path, config: Any, message: str) -> None:
    path = saved.with_suffix(".json")
    path.write_text(json.dumps(config))
    with pytest.raises(FewstepError, match=message) as caught:
        load_model(saved)
    assert str(path) in str(caught.value)


def test_only_known_models_are_saved(tmp_path: Path) -> None:
    with pytest.raises(FewstepError, match="unknown model class 'Linear'"):
        save_model(nn.Linear(1, 1), tmp_path / "x")


def test_a_failed_write_leaves_the_old_file(
    saved: Path, model: SparseStructureFlowModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("fewstep_trellis.checkpoint.save_file", fail)
    with pytest.raises(FewstepError, match="No space left on device"):
        save_model(model, saved)
    assert saved.read_bytes() == before
    assert not list(saved.parent.glob("*.tmp")) + list(saved.parent.glob(".*"))


def test_a_place_that_is_a_file(saved: Path, model: SparseStructureFlowModel) -> None:
    with pytest.raises(FewstepError, match=r"cannot be written: .*safetensors is not a folder"):
        save_model(model, saved / "below")


def test_loaded_weights_do_not_depend_on_the_file(saved: Path, model: SparseStructureFlowModel) -> None:
    found = load_model(saved)
    saved.write_bytes(b"\0" * saved.stat().st_size)
    assert same(found, model)


def test_build_model_on_a_device() -> None:
    assert build_model("SparseStructureFlowModel", ARGS, "meta").pos_emb.is_meta
