"""Procedural furniture as a prepared set, and several sets as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fewstep_shapes3d.data import SWEETHOME3D
from fewstep_shapes3d.data.joined import load_sets
from fewstep_shapes3d.data.prepared import PreparedSet
from fewstep_trellis.dataset import PreparedConfig

from fewstep.errors import FewstepError
from fewstep.files import sha256

pytest.importorskip("open3d", exc_type=ImportError)
from fewstep_shapes3d.data import parts, pieces

SMALL = {"pieces": 4, "held_out": 2, "views": 1, "workers": 1}


@pytest.fixture(scope="module")
def furniture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set with two views, as the shipped one has."""
    out = tmp_path_factory.mktemp("furniture") / "set"
    pieces.prepare_furniture(out, **{**SMALL, "views": 2})
    return out


def test_the_first_pieces_are_held_out_and_have_one_picture(furniture: Path) -> None:
    test, validation = (PreparedSet.load(furniture, split) for split in ("test", "validation"))
    assert [list(test.test), list(validation.test), list(test.train)] == [[0, 1], [2, 3], [4, 5, 6, 7]]
    assert [row["split"] for row in test.table] == ["test"] * 2 + ["validation"] * 2 + ["train"] * 4
    assert validation.picture(2).shape == (112, 112, 3)
    assert not np.array_equal(validation.picture(2), test.picture(0))
    assert not test.arrays["tokens"][:4, 0, 1].any()
    assert not test.arrays["tokens"][:4, 1].any()
    assert test.arrays["tokens"][4:].any((-1, -2)).all()
    assert len(test.surface_codes[0]) == int(test.table[0]["voxels"])
    with pytest.raises(FewstepError, match=r"data.held_out: got 'validation'; accepted: 'test': .* no validation"):
        PreparedSet.load(SWEETHOME3D, "validation")


def test_an_interrupted_set_goes_on_and_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART", 3)

    def interrupted(done: int, total: int, name: str) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pieces.prepare_furniture(tmp_path / "a", **SMALL, progress=interrupted)
    assert not (tmp_path / "a").exists()
    seen: list[int] = []
    pieces.prepare_furniture(tmp_path / "a", **SMALL, progress=lambda done, total, name: seen.append(done))
    assert seen == [3, 4, 5, 6, 7, 8], "the first part is kept"
    pieces.prepare_furniture(tmp_path / "b", **SMALL)
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b"}, "the parts are gone"
    for name in ("objects.csv", "surface.npz", "pictures.png"):
        assert sha256(tmp_path / "a" / name) == sha256(tmp_path / "b" / name)
    with pytest.raises(FewstepError, match="nothing is overwritten"):
        pieces.prepare_furniture(tmp_path / "a", **SMALL)
    with pytest.raises(FewstepError, match="held_out: got 1; accepted: 2 or more"):
        pieces.prepare_furniture(tmp_path / "c", **{**SMALL, "held_out": 1})


def test_near_duplicates_are_counted() -> None:
    grids = np.zeros((3, 8, 8, 8), dtype=bool)
    grids[0, :4], grids[1, 4:], grids[2, :, :1] = True, True, True  # the second is the mirror image of the first
    made = [type("M", (), {"bits": np.packbits(grid)})() for grid in grids]
    codes = np.array([2, 1, 2], dtype=np.uint8)
    assert pieces._near_duplicates(made, codes, 8) == 1


def test_sets_are_joined(furniture: Path) -> None:
    shipped, ours = PreparedSet.load(), PreparedSet.load(furniture)
    config = PreparedConfig(root=f"{SWEETHOME3D},{furniture}")
    both = load_sets(config.root)
    start = len(shipped)
    assert len(both) == start + 8
    assert list(both.train) == [*shipped.train, *(start + ours.train)]
    assert list(both.test) == [*shipped.test, start, start + 1]
    assert (both.occupancy([3, start + 5]) == np.stack([shipped.occupancy([3])[0], ours.occupancy([5])[0]])).all()
    assert (both.tokens([start + 6], 1, True) == ours.tokens([6], 1, True)).all()
    assert np.array_equal(both.picture(start + 1), ours.picture(1))
    assert np.array_equal(both.picture(int(shipped.test[-1])), shipped.picture(int(shipped.test[-1])))
    assert np.array_equal(both.surface_codes[start + 7], ours.surface_codes[7])
    assert both.table[start]["name"] == ours.table[0]["name"]
    with pytest.raises(FewstepError, match="index: got 828; accepted: 0 to 827"):
        both.picture(start + 8)


def test_sets_that_do_not_go_together_are_refused(furniture: Path, tmp_path: Path) -> None:
    pieces.prepare_furniture(tmp_path / "one-view", **SMALL)
    with pytest.raises(FewstepError, match=r"data.root: .*views 2 and 1.*--like SET"):
        load_sets([furniture, tmp_path / "one-view"])
    with pytest.raises(FewstepError, match=r"data.root: got 'nothing'"):
        load_sets([])
