"""The cache of training latents: equal to encoding one by one, resumable, shared, and with progress."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import fewstep_trellis.latents as module
import numpy as np
import pytest
import torch
from fewstep_shapes3d.data import SWEETHOME3D
from fewstep_shapes3d.data.prepared import PreparedSet
from fewstep_shapes3d.data.setfiles import ARRAYS
from fewstep_trellis.checkpoint import save_model
from fewstep_trellis.dataset import PreparedConfig, PreparedObjects, load_encoder
from fewstep_trellis.latents import encode_surfaces, surface_latents, training_latents
from fewstep_trellis.models import SLatEncoder, SparseStructureEncoder
from rich.console import Console
from torch import Tensor

from fewstep.core.backbone import Backbone
from fewstep.core.layout import Packed
from fewstep.engine.progress import counting
from fewstep.errors import FewstepError


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreparedSet:
    """Five training objects, an empty cache, and parts of four samples."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "PART", 4)
    made = PreparedSet.load()
    made.arrays["split"][made.train[5:]] = 0
    return made


def test_training_objects_that_cannot_be_used_are_left_out_and_named(tmp_path: Path) -> None:
    folder = shutil.copytree(SWEETHOME3D, tmp_path / "set")
    whole = PreparedSet.load()
    empty, blank = (int(row) for row in whole.train[[3, 5]])
    arrays = {name: array.copy() for name, array in whole.arrays.items()}
    arrays["occupancy"][empty] = 0
    arrays["tokens"][blank, 1, 0] = 0
    np.savez(folder / ARRAYS, **arrays)
    found = PreparedSet.load(folder)
    assert set(whole.train) - set(found.train) == {empty, blank}
    assert list(found.test) == list(whole.test)
    first, second = PreparedObjects(PreparedConfig(root=folder), Backbone()).notes()
    assert f"object {empty}, {whole.table[empty]['name']!r}: it has no voxel; left out" in first
    assert "a picture has no tokens" in second
    arrays["token_scale"][0] = np.nan
    np.savez(folder / ARRAYS, **arrays)
    with pytest.raises(FewstepError, match="token_scale of type float32 holds values that are not finite numbers"):
        PreparedSet.load(folder)


def structure_encoder() -> SparseStructureEncoder:
    torch.manual_seed(0)
    model = SparseStructureEncoder(1, 2, num_res_blocks=1, channels=[4, 8], num_res_blocks_middle=1)
    for name, parameter in model.named_parameters():
        if "conv2" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval().requires_grad_(False)


def surface_encoder() -> SLatEncoder:
    torch.manual_seed(0)
    model = SLatEncoder(32, 11, 16, 4, 2, num_heads=2, mlp_ratio=1, attn_mode="swin", window_size=8)
    torch.nn.init.normal_(model.out_layer.weight, std=0.1)
    return model.eval().requires_grad_(False)


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").rglob("*.safetensors"))


def counted(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[int]:
    """The sizes of the calls of ``encode``; raises KeyboardInterrupt in the call after ``stop_after``."""
    real, calls = module.encode, list[int]()

    def encode(encoder: SparseStructureEncoder, grids: Tensor) -> Tensor:
        if stop_after is not None and len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(len(grids))
        return real(encoder, grids)

    monkeypatch.setattr(module, "encode", encode)
    return calls


def test_structure_latents_equal_encoding_one_by_one(data: PreparedSet, tmp_path: Path) -> None:
    plain, path = structure_encoder(), tmp_path / "encoder"
    save_model(plain, path)
    found = training_latents(data, load_encoder(path), mirror=True)
    assert found.shape == (5, 2, 2, 16, 16, 16)
    for i, row in enumerate(data.train):
        for flip in (False, True):
            alone = plain.encode(data.occupancy([int(row)], flip))[0][0]
            assert torch.allclose(found[i, int(flip)], alone, atol=1e-5)
    assert torch.equal(training_latents(data, load_encoder(path), mirror=True), found), "from the cache"
    assert training_latents(data, plain, mirror=False).shape[:2] == (5, 1)


def test_packed_surfaces_equal_encoding_one_by_one(data: PreparedSet) -> None:
    encoder = surface_encoder()
    surfaces = [data.surface(int(row), flip) for row in data.train for flip in (False, True)]
    found = surface_latents(data, encoder, mirror=True)
    assert len(found) == 10
    for z, (coords, features) in zip(found, surfaces, strict=True):
        alone = encoder(features, Packed.of_lengths([len(coords)], coords.int()))
        assert torch.allclose(z, alone, atol=1e-5)
    again = surface_latents(data, encoder, mirror=True)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert encode_surfaces(encoder, []) == []


def test_an_interrupted_encode_goes_on_where_it_stopped(
    data: PreparedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = structure_encoder()
    with monkeypatch.context() as patch:
        counted(patch, stop_after=2)
        with pytest.raises(KeyboardInterrupt):
            training_latents(data, encoder, mirror=True)
    assert len(files(tmp_path)) == 2
    shown: list[tuple[int, int]] = []
    calls = counted(monkeypatch)
    found = training_latents(data, encoder, mirror=True, progress=lambda done, total, what: shown.append((done, total)))
    assert calls == [2], "ten samples in parts of four: one part was left"
    assert shown == [(8, 10), (10, 10)]
    for path in files(tmp_path):
        path.unlink()
    assert torch.equal(training_latents(data, encoder, mirror=True), found)


def test_a_damaged_file_is_made_again(data: PreparedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = structure_encoder()
    found = training_latents(data, encoder, mirror=True)
    files(tmp_path)[1].write_bytes(b"torn")
    calls = counted(monkeypatch)
    assert torch.equal(training_latents(data, encoder, mirror=True), found)
    assert calls == [4]


def test_other_weights_and_a_cache_that_cannot_be_written(
    data: PreparedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = structure_encoder()
    found = training_latents(data, encoder, mirror=True)
    encoder.input_layer.weight.mul_(2)
    assert not torch.allclose(training_latents(data, encoder, mirror=True), found)
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("FEWSTEP_CACHE", str(blocked))
    assert training_latents(data, encoder, mirror=True).shape == found.shape


def test_prepare_reads_and_shows_and_a_data_set_alone_does_not_encode(
    data: PreparedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(structure_encoder(), tmp_path / "encoder")
    made = PreparedObjects(PreparedConfig(encoder=tmp_path / "encoder"), Backbone())
    made.set.arrays["split"][:] = data.arrays["split"]
    made.held_out()
    assert not files(tmp_path), "a bench needs no training latents"
    console = Console(file=io.StringIO(), force_terminal=False, width=100)
    with counting(console, every=0) as count:
        made.prepare(torch.device("cpu"), count)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "encoding latents 0/10"
    assert lines[-1] == "encoding latents 10/10  0:00 left"
    assert "left" in lines[1]
    (folder,) = (tmp_path / "cache").iterdir()
    assert made.notes() == [f"latents of 10 training samples: {folder} (0.3 MB), kept for later runs"]
    assert made.notes() == []
    calls = counted(monkeypatch)
    assert made.batch([0, 1], torch.Generator()).x0.shape[0] == 2
    assert not calls
