"""Weights of other programs: any suffix, wrapper and dict; what was taken is told; what cannot be right is refused."""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fewstep_toy.config import ToyConfig
from fewstep_toy.network import ToyFlow
from fewstep_trellis.checkpoint import load_model, save_model
from fewstep_trellis.models import SparseStructureFlowModel
from fewstep_trellis.weightfiles import PLAIN, read_tensors, split_key
from fewstep_trellis.weights import select
from safetensors.torch import load_file, save_file
from test_trellis_checkpoint import ARGS
from torch import Tensor

from fewstep.engine.export import check_finite
from fewstep.errors import FewstepError

State = dict[str, Tensor]


@pytest.fixture
def stem(tmp_path: Path) -> Path:
    """A checkpoint pair without its weights."""
    torch.manual_seed(0)
    model = SparseStructureFlowModel(**ARGS)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    save_model(model, tmp_path / "x")
    (tmp_path / "x.safetensors").rename(tmp_path / "raw")
    return tmp_path / "x"


@pytest.fixture
def raw(stem: Path) -> State:
    return load_file(stem.with_name("raw"))


@pytest.fixture
def average(raw: State) -> State:
    return {key: value + 1 for key, value in raw.items()}


def loaded(path: Path) -> tuple[State, list[str]]:
    """A model's tensors, and what was said on the way."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        return load_model(path).state_dict(), [str(one.message) for one in said]


def assert_same(a: State, b: State) -> None:
    assert all(torch.equal(value.float(), b[key].float()) for key, value in a.items())


def below(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def inside(wrapper: str, state: State) -> State:
    """As FSDP, torch.compile and activation checkpointing wrap a block."""
    return {key.replace("blocks.0.", f"blocks.0.{wrapper}."): value for key, value in state.items()}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".safetensors", ""])
@pytest.mark.parametrize("form", ["zip", "pickle", "safetensors"])
def test_the_content_says_what_a_file_is(stem: Path, raw: State, suffix: str, form: str) -> None:
    path = Path(f"{stem}{suffix}")
    if form == "safetensors":
        save_file(raw, path)
    else:
        torch.save(raw, path, _use_new_zipfile_serialization=form == "zip")
    for name in {path, stem}:
        found, said = loaded(name)
        assert_same(raw, found)
        assert said == []


WRAPPERS = [
    "module.",
    "net.",
    "model.",
    "model.diffusion_model.",
    "student.",
    "flow_model.",
    "_forward_module.any.name.",
]


@pytest.mark.parametrize("prefix", WRAPPERS)
def test_a_prefix_is_what_stands_before_the_networks_names(stem: Path, raw: State, prefix: str) -> None:
    torch.save({"state_dict": below(prefix, raw), "epoch": 3}, f"{stem}.ckpt")
    found, said = loaded(stem)
    assert_same(raw, found)
    assert said == [f"{stem}.ckpt: removed the prefix {prefix!r} from all {len(raw)} keys"]


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"])
def test_wrappers_of_single_blocks(stem: Path, raw: State, wrapper: str) -> None:
    torch.save(below(f"{wrapper}.", inside(wrapper, raw)), f"{stem}.pt")
    found, said = loaded(stem)
    assert_same(raw, found)
    assert any(f"left {wrapper} out of the keys" in line for line in said)


@pytest.mark.parametrize("name", ["module", "model_state_dict", "params", "generator", "network", "teacher", "any"])
def test_one_dict_is_taken_whatever_its_name(stem: Path, raw: State, name: str) -> None:
    rest = {"optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}, "step": torch.tensor(3), "lr": [1e-3]}
    torch.save({"outer": {name: raw}, **rest}, f"{stem}.pt")
    found, said = loaded(stem)
    assert_same(raw, found)
    assert said == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("model", "ema"),
        ("params", "params_ema"),
        ("generator", "generator_ema"),
        ("net", "netEMA"),
        ("state_dict", "state_dict_ema"),
        ("teacher", "student"),
        ("discriminator", "model"),
        ("teacher_ema", "generator"),
    ],
)
def test_of_several_the_average_is_taken_and_told(
    stem: Path, raw: State, average: State, first: str, second: str
) -> None:
    file = Path(f"{stem}.pt")
    for both in ({first: raw, second: average}, {second: average, first: raw}):
        torch.save(both, file)
        found, said = loaded(file)
        assert_same(average, found)
        assert said == [f"{file}: took {second!r} of {second}, {first}; for another: {file}:{first}"]
    for key, expected in ((first, raw), (second, average)):
        found, said = loaded(Path(f"{file}:{key}"))
        assert_same(expected, found)
        assert said == []


def test_networks_beside_each_other_in_one_dict(stem: Path, raw: State, average: State) -> None:
    parts = {**below("model.", raw), **below("ema_model.", average), "loss.weight": torch.zeros(3)}
    torch.save({"state_dict": parts}, f"{stem}.ckpt")
    found, said = loaded(stem)
    assert_same(average, found)
    assert said == [
        f"{stem}.ckpt: took 'state_dict.ema_model' of state_dict.ema_model, state_dict.model; "
        f"for another: {stem}.ckpt:state_dict.model"
    ]


def test_a_key_that_is_not_there(stem: Path, raw: State) -> None:
    torch.save({"model": raw, "ema": raw}, f"{stem}.pt")
    with pytest.raises(FewstepError, match=r"unknown weights in .*x\.pt 'emma': accepted are ema, model; did you mean"):
        load_model(Path(f"{stem}.pt:emma"))
    odd = stem.with_name("a:b.pt")
    odd.touch()
    assert split_key(odd) == (odd, None)
    assert split_key(Path(f"{odd}:c")) == (odd, "c")


def test_an_average_that_cannot_be_used_is_told(stem: Path, raw: State, average: State) -> None:
    partial = {key: value for key, value in average.items() if key != "out_layer.bias"}
    for ema in (partial, {"shadow_params": list(average.values()), "decay": 0.999}):
        torch.save({"model": raw, "ema": ema}, f"{stem}.pt")
        found, said = loaded(stem)
        assert_same(raw, found)
        assert said == [f"{stem}.pt: 'ema' was not taken: it lacks some of the network's keys"]


def test_plain_data_beside_the_tensors(stem: Path, raw: State) -> None:
    extra = {"args": argparse.Namespace(lr=1.0), "best": np.float64(0.5), "root": Path("x"), "epoch": 3}
    torch.save({"model": raw, **extra}, f"{stem}.pt")
    assert_same(raw, loaded(stem)[0])
    assert print not in PLAIN


def test_adapters_are_not_taken_for_the_weight(stem: Path, raw: State) -> None:
    weight = raw.pop("out_layer.weight")
    parts = {"out_layer.base_layer.weight": weight, "out_layer.lora_A.weight": weight}
    torch.save({**raw, **parts}, f"{stem}.pt")
    with pytest.raises(FewstepError, match=r"base_layer\.weight and .*lora_A\.weight are both 'out_layer\.weight'"):
        load_model(stem)
    torch.save({**raw, "out_layer.weight": weight, "out_layer.lora_A.weight": weight}, f"{stem}.pt")
    with pytest.raises(FewstepError, match=r"1 unknown: out_layer\.lora_A\.weight"):
        load_model(stem)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_weights_in_several_files(stem: Path, raw: State, form: str) -> None:
    names, places = list(raw), dict[str, str]()
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = stem.with_name(f"x-0000{number}-of-00002.{form}")
        write: Any = save_file if form == "safetensors" else torch.save
        write({name: raw[name] for name in part}, file)
        places |= dict.fromkeys(part, file.name)
    index = Path(f"{stem}.{form}.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8-sig")
    for path in (stem, index):
        assert_same(raw, loaded(path)[0])
    stem.with_name(f"x-00002-of-00002.{form}").unlink()
    with pytest.raises(FewstepError, match=r"x-00002-of-00002\.\w+'; accepted: a file that exists"):
        load_model(stem)
    index.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(FewstepError, match='an index with a "weight_map" from names to files beside it'):
        load_model(stem)


class Sly:
    """Would touch a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("touched"),))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (SparseStructureFlowModel(**ARGS), "a pickled .*SparseStructureFlowModel, which could run code"),
        ({"model": SparseStructureFlowModel(**ARGS)}, "a pickled .*SparseStructureFlowModel, which could run code"),
        ({"a": torch.zeros(2), "b": Sly()}, "which could run code; save the state_dict"),
        ([1, 2], "this one holds other objects"),
        ({"a": 3}, "this one holds other objects"),
    ],
)
def test_pickles_run_no_code_and_the_message_gives_no_bad_advice(
    stem: Path, content: object, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stem.parent)
    for zipped in (True, False):
        torch.save(content, f"{stem}.pt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(FewstepError, match=expected) as caught:
            load_model(stem)
        text = str(caught.value)
        assert "\x1b" not in text
        assert "weights_only" not in text
        assert "\n" not in text
    assert not Path("touched").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", r"this one is empty \(0 bytes\)"),
        (b"<html>not found</html>", "truncated, of another format"),
        (b"\x80\x02garbage", "truncated, of another format"),
        (b"PK\x03\x04garbage", "reading it failed"),
        (b"\xff" * 8 + b"{}", "a complete safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_files_that_hold_no_weights(stem: Path, content: bytes, expected: str) -> None:
    for suffix in (".pt", ".ckpt", ".safetensors"):
        path = Path(f"{stem}{suffix}")
        path.write_bytes(content)
        with pytest.raises(FewstepError, match=expected):
            load_model(path)
        path.unlink()


def test_a_torchscript_program(stem: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save(f"{stem}.pt")
    with pytest.raises(FewstepError, match="it is a TorchScript program"):
        load_model(stem)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(stem: Path, raw: State, value: float) -> None:
    raw["input_layer.weight"][0, 0] = value
    save_file(raw, f"{stem}.safetensors")
    count = raw["input_layer.weight"].numel()
    with pytest.raises(FewstepError, match=rf"not finite: input_layer\.weight \(1 of {count}\)"):
        load_model(stem)


def test_weights_beyond_the_networks_numbers_are_not_finite(stem: Path, raw: State) -> None:
    torch.save({**raw, "out_layer.bias": torch.full((2,), 1e300, dtype=torch.float64)}, f"{stem}.pt")
    with pytest.raises(FewstepError, match=r"not finite: out_layer\.bias \(2 of 2\)"):
        load_model(stem)


def test_weights_that_are_zero_or_no_real_numbers(stem: Path, raw: State) -> None:
    save_file({key: value * 0 for key, value in raw.items()}, f"{stem}.safetensors")
    with pytest.raises(FewstepError, match=r"x\.safetensors: every weight is 0"):
        load_model(stem)
    for kind in (torch.int8, torch.complex64, torch.bool):
        torch.save({**raw, "out_layer.bias": raw["out_layer.bias"].to(kind)}, f"{stem}.pt")
        with pytest.raises(FewstepError, match=rf"1 no real numbers: out_layer\.bias {str(kind)[6:]}"):
            load_model(Path(f"{stem}.pt"))


def test_every_backbones_student_is_checked(tmp_path: Path) -> None:
    flow = ToyFlow(ToyConfig())
    check_finite(flow.state_dict(), "it")
    flow.rest[1].bias.data[0] = float("nan")
    with pytest.raises(FewstepError, match=r"it: weights that are not finite: rest\.1\.bias \(1 of 128\)"):
        check_finite(flow.state_dict(), "it")


def test_names_are_read_without_a_network(tmp_path: Path) -> None:
    torch.save({"a": {"b.c": torch.ones(1)}, "d": torch.ones(2)}, tmp_path / "x")
    assert set(read_tensors(tmp_path / "x")) == {"a/b.c", "d"}
    assert set(read_tensors(tmp_path / "x", "a")) == {"a/b.c"}
    assert set(read_tensors(tmp_path / "x", ".")) == {"d"}
    with pytest.warns(UserWarning, match=r"removed the prefix 'b\.' from all 1 keys"):
        assert set(select(read_tensors(tmp_path / "x"), ["c"], "x")) == {"c"}
