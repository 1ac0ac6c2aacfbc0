"""Measured tiles: bounded, remembered on disk by GPU and versions, switched off, and never in the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fewstep_kernels import tuning
from fewstep_kernels.cache import Cache
from fewstep_kernels.tuning import Tile, choose

from fewstep.errors import FewstepError

TILES = [Tile({"BLOCK_M": size}, warps=4, stages=2) for size in (16, 32, 64, 128, 256, 512, 1024)]
SECONDS = {16: 5.0, 32: 3.0, 64: 1.0, 128: 2.0, 256: 9.0, 512: 9.0, 1024: 0.1}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """The sizes that were tried, on a GPU that is made up; 64 is the fastest of those that may be tried."""
    seen: list[int] = []
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "measuring", lambda: True)
    monkeypatch.setattr(tuning.torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(tuning, "_cache", lambda index: Cache("NVIDIA H200", "3.6.0", "2.11", "0.1"))

    def milliseconds(launch: object) -> float:
        launch()  # type: ignore[operator]
        return SECONDS[seen[-1]]

    monkeypatch.setattr(tuning, "milliseconds", milliseconds)
    return seen


def test_the_fastest_is_taken_and_remembered(launched: list[int], tmp_path: Path) -> None:
    def run(tile: Tile) -> None:
        launched.append(tile.sizes["BLOCK_M"])

    assert choose("k", ("fp16", 64), TILES, run) is TILES[2]
    assert launched == [16, 32, 64, 128, 256, 512]  # six at most
    launched.clear()
    assert choose("k", ("fp16", 64), TILES, run) is TILES[2]
    assert launched == []
    (file,) = (tmp_path / "tiles").iterdir()
    assert file.name == "NVIDIA-H200_3.6.0_2.11_0.1.json"
    assert json.loads(file.read_text()) == {"k/fp16/64": "64-w4-s2"}


def test_another_key_is_measured_again_and_both_are_kept(launched: list[int], tmp_path: Path) -> None:
    for width in (64, 128):
        choose("k", ("fp16", width), TILES, lambda tile: launched.append(tile.sizes["BLOCK_M"]))
    assert len(launched) == 12
    (file,) = (tmp_path / "tiles").iterdir()
    assert len(json.loads(file.read_text())) == 2


def test_a_tile_that_cannot_be_launched_is_left_out(launched: list[int]) -> None:
    def run(tile: Tile) -> None:
        if tile.sizes["BLOCK_M"] == 64:
            raise RuntimeError("out of resources: shared memory")
        launched.append(tile.sizes["BLOCK_M"])

    assert choose("k", ("fp16",), TILES, run) is TILES[3]

    def never(tile: Tile) -> None:
        raise RuntimeError("no")

    assert choose("other", ("fp16",), TILES, never) is TILES[0]


def test_a_remembered_tile_that_is_no_longer_shipped_is_measured_anew(launched: list[int]) -> None:
    Cache("NVIDIA H200", "3.6.0", "2.11", "0.1").put("k/fp16", "7-w4-s2")
    assert choose("k", ("fp16",), TILES, lambda tile: launched.append(tile.sizes["BLOCK_M"])) is TILES[2]


def test_a_damaged_file_costs_a_warning(launched: list[int], tmp_path: Path) -> None:
    path = Cache("NVIDIA H200", "3.6.0", "2.11", "0.1").path
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.warns(UserWarning, match="measured anew"):
        found = choose("k", ("fp16",), TILES, lambda tile: launched.append(tile.sizes["BLOCK_M"]))
    assert found is TILES[2]


def test_off_without_a_gpu_and_by_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(tile: Tile) -> None:
        raise AssertionError("nothing is measured")

    assert choose("k", (), TILES, run) is TILES[0]
    monkeypatch.setattr(tuning.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tuning, "interpreted", lambda: False)
    monkeypatch.setattr(tuning, "_capturing", lambda: False)
    assert tuning.measuring()
    monkeypatch.setenv("FEWSTEP_AUTOTUNE", "0")
    assert choose("k", (), TILES, run) is TILES[0]
    monkeypatch.setenv("FEWSTEP_AUTOTUNE", "no")
    with pytest.raises(FewstepError, match="FEWSTEP_AUTOTUNE: got 'no'; accepted: 0 or 1"):
        tuning.measuring()
