"""Data sets in TRELLIS's own layout: objects, batches, what cannot be read, and what does not fit."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fewstep_shapes3d.pictures.preprocess import dataset_preparation
from fewstep_trellis.normalisation import Normalisation
from fewstep_trellis.official import encode
from fewstep_trellis.official.config import LatentsConfig, StructureConfig
from fewstep_trellis.official.dataset import OfficialDataset, StructuredLatents, StructureLatents
from fewstep_trellis.official.selection import select
from fewstep_trellis.shipped import NANO
from official_root import SLAT, SS, VIEWS, Letters, Pixels, Stub, make_root, sha
from PIL import Image

from fewstep.cli import main
from fewstep.config.base import validate
from fewstep.core.layout import Dense, Packed
from fewstep.errors import FewstepError


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> Pixels:
    """The picture encoder that every data set of the test gets."""
    pixels = Pixels()
    monkeypatch.setattr(encode, "image_conditioner", lambda name: pixels)
    monkeypatch.setattr(encode, "text_conditioner", lambda name: Letters())
    return pixels


def slat(root: Path, backbone: Stub | None = None, **keys: Any) -> StructuredLatents:
    values = {"roots": str(root), "normalisation": "stored", "image_size": 14, **keys}
    return StructuredLatents(validate(LatentsConfig, values), backbone or Stub())


def structure(root: Path, backbone: Stub | None = None, **keys: Any) -> StructureLatents:
    values = {"roots": str(root), "image_size": 14, **keys}
    return StructureLatents(validate(StructureConfig, values), backbone or Stub())


def latents(root: Path, index: int) -> dict[str, Any]:
    return dict(np.load(root / "latents" / SLAT / f"{sha(index)}.npz"))


def chosen(root: str, **keys: Any) -> list[str]:
    config = validate(LatentsConfig, {"roots": root, **keys})
    return [row.sha256 for row in select(config.roots, config.filters()).rows]


class TestObjects:
    def test_bounds_are_inclusive_and_empty_cells_pass_no_filter(self, tmp_path: Path) -> None:
        cells = {
            0: {"aesthetic_score": "4.5"},
            1: {"aesthetic_score": "4.49"},
            2: {"num_voxels": "40"},
            3: {"num_voxels": "41"},
            4: {"cond_rendered": ""},
            5: {f"latent_{SLAT}": "False"},
            6: {"aesthetic_score": ""},
            7: {"cond_rendered": "true"},
        }
        root = make_root(tmp_path / "root", 8, cells=cells | {7: {"cond_rendered": "true", "num_voxels": "1"}})
        config = validate(LatentsConfig, {"roots": root, "max_voxels": 40})
        found = select(config.roots, config.filters())
        assert [row.sha256 for row in found.rows] == [sha(0), sha(2), sha(7)]
        names = ["Total", "With latent", "Aesthetic score >= 4.5", "Num voxels <= 40", "Cond rendered"]
        assert found.counts[0].left == dict(zip(names, [8, 7, 5, 4, 3], strict=True))
        assert found.counts[0].missing == {"Aesthetic score >= 4.5": 1, "Cond rendered": 1}
        assert any("1 rows have no value for 'Cond rendered': left out" in line for line in found.lines())

    def test_an_object_in_two_roots_is_used_once_and_said(self, tmp_path: Path) -> None:
        first = make_root(tmp_path / "a", 3, cells={1: {"aesthetic_score": "1"}})
        second = make_root(tmp_path / "b", 4)
        config = validate(LatentsConfig, {"roots": f"{first}, {second}"})
        found = select(config.roots, config.filters())
        assert [(row.root.name, row.sha256) for row in found.rows] == [
            ("a", sha(0)), ("a", sha(2)), ("b", sha(1)), ("b", sha(3))
        ]  # fmt: skip
        assert [name for name, *_ in found.twice] == [sha(0), sha(2)]
        assert f"2 objects of {second} are in {first} too: that one is used" in list(found.lines())

    def test_captions_are_asked_for_with_text(self, tmp_path: Path) -> None:
        root = make_root(tmp_path / "root", 3, cells={0: {"captions": ""}, 1: {"cond_rendered": "False"}})
        assert chosen(str(root), condition="text") == [sha(1), sha(2)]
        assert chosen(str(root)) == [sha(0), sha(2)]

    @pytest.mark.parametrize(
        ("cells", "keys", "text"),
        [
            (
                {2: {"cond_rendered": "maybe"}},
                {},
                "line 4, cond_rendered: got 'maybe'; accepted: True, False or nothing",
            ),
            ({0: {"num_voxels": "many"}}, {}, "line 2, num_voxels: got 'many'; accepted: a number"),
            ({0: {"sha256": "../x"}}, {}, "line 2, sha256: got '../x'"),
            ({0: {"sha256": ""}}, {}, "line 2, sha256: got ''"),
            ({}, {"latent_model": SLAT[:-1]}, f"did you mean 'latent_{SLAT}'?"),
        ],
    )
    def test_a_table_that_cannot_be_used(
        self, tmp_path: Path, cells: dict[int, dict[str, str]], keys: dict[str, str], text: str
    ) -> None:
        root = make_root(tmp_path / "root", 3, cells=cells)
        with pytest.raises(FewstepError, match=re.escape(text)):
            chosen(str(root), **keys)

    def test_roots_that_are_none(self, tmp_path: Path, encoder: Pixels) -> None:
        with pytest.raises(FewstepError, match=r"data\.roots: got ''; accepted: folders with a metadata\.csv"):
            slat(Path(), roots="")
        with pytest.raises(FewstepError, match=r"data\.roots: got '.*nowhere'; accepted: .*; this is not a folder"):
            slat(tmp_path / "nowhere")
        (tmp_path / "empty").mkdir()
        with pytest.raises(
            FewstepError, match=r"empty'; accepted: folders with a metadata\.csv, .*; this one has none$"
        ):
            slat(tmp_path / "empty")
        (tmp_path / "empty/manifest.json").touch()
        with pytest.raises(FewstepError, match=r"empty/manifest\.json says what this prepared set holds$"):
            slat(tmp_path / "empty")
        with pytest.raises(FewstepError, match=r"no object passes the filters\n.*Aesthetic score >= 9\.0: 0"):
            slat(make_root(tmp_path / "root", 2), min_aesthetic=9)


class TestBatches:
    def test_structured_latents(self, tmp_path: Path, encoder: Pixels) -> None:
        root = make_root(tmp_path / "root")
        norm = Normalisation(mean=tuple(range(8)), std=tuple(range(1, 9)))
        batch = slat(root, Stub(norm), normalisation="teacher").batch([4, 1], torch.Generator().manual_seed(0))
        assert isinstance(batch.layout, Packed)
        assert batch.layout.lengths.tolist() == [38, 17]
        stored = [latents(root, i) for i in (4, 1)]
        wanted = np.concatenate([each["feats"] for each in stored])
        torch.testing.assert_close(batch.x0, torch.tensor((wanted - np.arange(8)) / np.arange(1, 9)).float())
        assert batch.layout.coords is not None
        assert batch.layout.coords.tolist() == np.concatenate([each["coords"] for each in stored]).tolist()

    def test_structure_latents(self, tmp_path: Path, encoder: Pixels) -> None:
        root = make_root(tmp_path / "root")
        norm = {"mean": [1.0] * 8, "std": [2.0] * 8}
        batch = structure(root, normalisation=norm).batch([2, 0], torch.Generator().manual_seed(0))
        mean = np.load(root / "ss_latents" / SS / f"{sha(2)}.npz")["mean"]
        assert isinstance(batch.layout, Dense)
        assert torch.equal(batch.x0[0], torch.from_numpy((mean - 1) / 2))
        assert torch.equal(structure(root).batch([2], torch.Generator()).x0[0], torch.from_numpy(mean))

    def test_a_view_is_drawn_and_encoded_as_the_reference_prepares_it(self, tmp_path: Path, encoder: Pixels) -> None:
        root = make_root(tmp_path / "root")
        data, views = slat(root), set()
        for seed in range(12):
            tokens = data.batch([3], torch.Generator().manual_seed(seed)).cond.tokens
            pictures = [Image.open(root / "renders_cond" / sha(3) / f"00{view}.png") for view in range(VIEWS)]
            made = [encoder(dataset_preparation(picture, 14)[None]) for picture in pictures]
            views |= {view for view in range(VIEWS) if torch.equal(tokens, made[view])}  # type: ignore[arg-type]
        assert views == {0, 1, 2}

    def test_a_caption_is_drawn_and_the_negative_is_the_empty_text(self, tmp_path: Path, encoder: Pixels) -> None:
        data = slat(make_root(tmp_path / "root"), condition="text")
        batches = [data.batch([3, 5], torch.Generator().manual_seed(seed)) for seed in range(8)]
        lengths = {int(batch.cond.tokens[0, 0, 0]) for batch in batches if batch.cond.tokens is not None}
        assert lengths == {len("thing 3"), len("object number 3")}
        negative = batches[0].cond.negative().tokens
        assert negative is not None
        assert torch.equal(negative, Letters().encode(["", ""]))

    def test_a_batch_is_a_function_of_seed_step_and_rank(self, tmp_path: Path, encoder: Pixels) -> None:
        root = make_root(tmp_path / "root", 9)
        one, two = slat(root, voxel_budget=120), slat(root, voxel_budget=120, workers=1)
        for step in (0, 1, 5):
            for rank in range(2):
                a, b = (data.training_batch(step, 4, 7, rank, 2) for data in (one, two))
                assert torch.equal(a.x0, b.x0)
                assert torch.equal(a.cond.tokens, b.cond.tokens)  # type: ignore[arg-type]
                assert len(a.x0) <= 120
            two = slat(root, voxel_budget=120)  # as after a restart
        assert not torch.equal(one.training_batch(0, 4, 7).x0, one.training_batch(0, 4, 8).x0)

    def test_loads_are_the_tables(self, tmp_path: Path, encoder: Pixels) -> None:
        data = slat(make_root(tmp_path / "root", 4))
        assert list(data.loads()) == [10, 17, 24, 31]
        assert structure(tmp_path / "root").loads() is None


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def rewrite(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        arrays = dict(np.load(path))
        np.savez(path, **change(arrays))

    return damage


def grey(path: Path) -> None:
    Image.open(path).convert("RGB").save(path)


def empty(path: Path) -> None:
    Image.new("RGBA", (32, 32)).save(path)


def spoil(path: Path) -> None:
    """40 bytes in the middle, as a disk does it."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = b"\xff" * 40
    path.write_bytes(content)


def compressed(path: Path) -> None:
    np.savez_compressed(path, **dict(np.load(path)))
    spoil(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def voxel(value: int, dtype: str) -> Callable[[Path], None]:
    def change(arrays: dict[str, Any]) -> dict[str, Any]:
        coords = arrays["coords"].astype(dtype)
        coords[3, 1] = value
        return arrays | {"coords": coords}

    return rewrite(change)


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


LATENT = f"latents/{SLAT}/{sha(2)}.npz"
DAMAGE = {
    "missing": (LATENT, remove, "there is no such file"),
    "cut": (LATENT, cut, "BadZipFile"),
    "no array": (LATENT, rewrite(lambda a: {"coords": a["coords"]}), "feats"),
    "not finite": (LATENT, rewrite(lambda a: a | {"feats": a["feats"] * np.nan}), "not finite numbers"),
    "unlike": (LATENT, rewrite(lambda a: a | {"feats": a["feats"][1:]}), "24 voxels of type uint8 for 23 latents"),
    "no rows": (LATENT, rewrite(lambda a: {k: v[:0] for k, v in a.items()}), r"shape \[0, 3\]"),
    "shape": (LATENT, rewrite(lambda a: a | {"coords": a["coords"][:, :2]}), r"accepted: \[any, 3\]"),
    "middle": (LATENT, spoil, "Error|BadZipFile"),
    "zlib": (LATENT, compressed, "error|BadZipFile"),
    "no bytes": (LATENT, lambda p: p.write_bytes(b""), "EOFError"),
    "no archive": (LATENT, lambda p: np.save(p.open("wb"), np.zeros(3)), "Error"),
    "folder": (LATENT, folder, "IsADirectoryError"),
    "objects": (LATENT, rewrite(lambda a: a | {"feats": a["feats"].astype(object)}), "pickle"),
    "negative": (LATENT, voxel(-1, "int32"), "a voxel at -1; the encoder's grid has 64 cells"),
    "wrapped": (LATENT, voxel(2**33 + 1, "int64"), "a voxel at 8589934593"),
    "unsigned": (LATENT, voxel(2**63 + 5, "uint64"), f"a voxel at {2**63 + 5}"),
    "outside": (LATENT, voxel(64, "uint8"), "a voxel at 64"),
    "fractions": (LATENT, rewrite(lambda a: a | {"coords": a["coords"] + 0.5}), "voxels of type float64"),
    "twice": (
        LATENT,
        rewrite(lambda a: a | {"coords": a["coords"][[0, *range(23)]]}),
        "1 of 24 voxels are there already",
    ),
    "integers": (
        LATENT,
        rewrite(lambda a: a | {"feats": a["feats"].astype(np.int32)}),
        "type int32; accepted: floating",
    ),
    "too large": (LATENT, rewrite(lambda a: a | {"feats": a["feats"] * np.float64(1e300)}), "not finite numbers"),
    "channels": (
        LATENT,
        rewrite(lambda a: a | {"feats": np.tile(a["feats"], 2)}),
        "in_channels 16; the teacher has in_channels 8",
    ),
    "cut picture": (f"renders_cond/{sha(2)}/*.png", halved, "OSError|SyntaxError"),
    "no renders": (f"renders_cond/{sha(2)}", lambda p: shutil.rmtree(p), "cannot be read: No such file"),
    "no views": (f"renders_cond/{sha(2)}/transforms.json", lambda p: p.write_text('{"frames": []}'), "no frames"),
    "no json": (f"renders_cond/{sha(2)}/transforms.json", lambda p: p.write_text("{"), "truncated or not JSON"),
    "no alpha": (f"renders_cond/{sha(2)}/*.png", grey, "mode RGB; accepted: RGBA"),
    "nothing seen": (f"renders_cond/{sha(2)}/*.png", empty, "transparent everywhere"),
    "no picture": (f"renders_cond/{sha(2)}/*.png", lambda p: p.write_bytes(b"x"), "UnidentifiedImageError"),
}


class TestFailures:
    @pytest.mark.parametrize("kind", list(DAMAGE))
    def test_what_is_wrong_is_named_counted_and_replaced(self, tmp_path: Path, encoder: Pixels, kind: str) -> None:
        root = make_root(tmp_path / "root")
        pattern, damage, text = DAMAGE[kind]
        for path in root.glob(pattern):
            damage(path)
        data = slat(root)
        data.notes()
        batch = data.batch([2, 1], torch.Generator().manual_seed(0))
        (note,) = data.notes()
        assert re.search(text, note), note
        assert sha(2) in note
        assert "number 1 of data.max_failures=20" in note
        assert batch.layout.lengths.tolist() == [10, 17]  # type: ignore[attr-defined]  # 3 to 5 are heavier than 2
        data.batch([2], torch.Generator())
        assert data.notes() == []

    @pytest.mark.parametrize("kind", list(DAMAGE))
    def test_inspection_finds_the_same(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
        root = make_root(tmp_path / "root")
        pattern, damage, text = DAMAGE[kind]
        damage(sorted(root.glob(pattern))[-1])  # one of the object's pictures is enough
        assert main(["data", "inspect", str(root), "--files", "6", "image_size=14"]) == 1
        out = capsys.readouterr().out
        assert "read 6 objects: 1 cannot be used" in out
        assert re.search(text.partition(";")[0], out), out
        assert sha(2) in out

    @pytest.mark.parametrize("change", [lambda m: m[:4], lambda m: m[:, :2, :2, :2], lambda m: m.astype(int)])
    def test_structures_too(
        self, tmp_path: Path, encoder: Pixels, capsys: pytest.CaptureFixture[str], change: Callable[[Any], Any]
    ) -> None:
        root = make_root(tmp_path / "root")
        rewrite(lambda arrays: {"mean": change(arrays["mean"])})(root / "ss_latents" / SS / f"{sha(2)}.npz")
        assert main(["data", "inspect", str(root), "--stage", "ss", "--files", "6", "image_size=14"]) == 1
        assert sha(2) in capsys.readouterr().out
        data = structure(root, Stub(resolution=4))
        data.notes()
        assert len(data.batch([2, 3], torch.Generator()).x0) == 2
        assert sha(2) in data.notes()[0]

    def test_an_object_with_one_bad_picture_is_used_by_its_others(self, tmp_path: Path, encoder: Pixels) -> None:
        root = make_root(tmp_path / "root")
        halved(root / "renders_cond" / sha(2) / "001.png")
        data = slat(root)
        for step in range(12):  # what was found bad before does not change what is read now
            running, restarted = data.training_batch(step, 4, 0), slat(root).training_batch(step, 4, 0)
            assert torch.equal(running.x0, restarted.x0)
        assert len(data.failures.reasons) == 1
        lengths = {
            n
            for seed in range(9)
            for n in slat(root).batch([2], torch.Generator().manual_seed(seed)).layout.lengths.tolist()
        }  # type: ignore[attr-defined]
        assert lengths == {24, 17 - 7}

    def test_many_are_named_up_to_a_number_and_counted(self, tmp_path: Path, encoder: Pixels) -> None:
        root = make_root(tmp_path / "root", 80)
        for index in range(1, 38):
            remove(root / "latents" / SLAT / f"{sha(index)}.npz")
        data = slat(root)
        data.notes()
        data.batch(list(range(38)), torch.Generator())
        notes = data.notes()
        assert len(notes) == 21
        assert "32 objects left out so far" in notes[-1]
        assert "number 32 of data.max_failures=40" in notes[-1]

    def test_where_all_are_alike_the_first_twenty_say_so(self, tmp_path: Path, encoder: Pixels) -> None:
        with pytest.raises(
            FewstepError, match=r"data\.roots: 21 of 60 objects cannot be used, and none could so far"
        ) as e:
            slat(make_root(tmp_path / "root", 60), Stub(in_channels=4))
        assert len(str(e.value).splitlines()) == 7

    def test_a_disk_that_is_gone_is_no_matter_of_one_object(self, tmp_path: Path, encoder: Pixels) -> None:
        data = slat(make_root(tmp_path / "root"))
        (tmp_path / "root").rename(tmp_path / "away")
        with pytest.raises(FewstepError, match="this is not a folder"):
            data.batch([1], torch.Generator())

    def test_captions_that_are_no_list(self, tmp_path: Path, encoder: Pixels) -> None:
        root = make_root(tmp_path / "root", cells={2: {"captions": "a chair"}})
        data = slat(root, condition="text")
        data.notes()
        data.batch([2], torch.Generator())
        (note,) = data.notes()
        assert "metadata.csv, line 4, captions: got 'a chair'; accepted: a JSON list of texts" in note

    def test_voxels_that_contradict_the_teacher_or_the_table(self, tmp_path: Path, encoder: Pixels) -> None:
        root = make_root(tmp_path / "root", cells={2: {"num_voxels": "23"}}, side=7)
        rewrite(lambda arrays: arrays | {"coords": arrays["coords"] + np.uint8(1)})(root / LATENT)
        for data, text in (
            (slat(root, voxel_budget=200), "24 voxels; the table says 23"),
            (slat(root, Stub(resolution=7)), "a voxel at 7; the teacher has 7 cells"),
        ):
            data.notes()
            data.batch([2], torch.Generator())
            assert text in data.notes()[0]
        data = slat(root, Stub(resolution=8))  # without a budget nothing was packed by the table
        assert data.batch([2], torch.Generator()).layout.lengths.tolist() == [24]  # type: ignore[attr-defined]

    def test_a_restarted_run_replaces_alike(self, tmp_path: Path, encoder: Pixels) -> None:
        root = make_root(tmp_path / "root")
        for path in (root / "renders_cond" / sha(2)).glob("*.png"):
            path.unlink()  # found after a draw: what stands in draws anew
        data = slat(root)
        for step in range(6):
            running, restarted = data.training_batch(step, 4, 0), slat(root).training_batch(step, 4, 0)
            assert torch.equal(running.x0, restarted.x0)
            assert torch.equal(running.cond.tokens, restarted.cond.tokens)  # type: ignore[arg-type]

    def test_the_next_stands_in_where_samples_are_alike(self, tmp_path: Path, encoder: Pixels) -> None:
        root = make_root(tmp_path / "root", 4)
        for index in (2, 3):
            (root / "ss_latents" / SS / f"{sha(index)}.npz").unlink()
        found = structure(root).batch([2, 3, 1], torch.Generator()).x0
        mean = [np.load(root / "ss_latents" / SS / f"{sha(index)}.npz")["mean"] for index in (0, 1)]
        assert torch.equal(found, torch.from_numpy(np.stack([mean[0], mean[0], mean[1]])))

    def test_too_many_are_fatal(self, tmp_path: Path, encoder: Pixels) -> None:
        root = make_root(tmp_path / "root")
        for index in (2, 4):
            (root / "latents" / SLAT / f"{sha(index)}.npz").unlink()
        data = slat(root, max_failures=1)
        data.batch([2], torch.Generator())
        with pytest.raises(
            FewstepError, match=r"data\.max_failures: 2 of 6 objects cannot be used; accepted: at most 1"
        ) as e:
            data.batch([4], torch.Generator())
        assert sha(2) in str(e.value)
        assert sha(4) in str(e.value)
        with pytest.raises(FewstepError, match="1 of 6 objects cannot be used; accepted: at most 0"):
            slat(root, max_failures=0).batch([0, 2], torch.Generator())

    def test_a_set_whose_files_are_all_missing_ends(self, tmp_path: Path, encoder: Pixels) -> None:
        root = make_root(tmp_path / "root", 3)
        for path in (root / "latents" / SLAT).iterdir():
            path.unlink()
        with pytest.raises(FewstepError, match="3 of 3 objects cannot be used"):
            slat(root)


class TestTokenCache:
    def test_a_picture_is_encoded_once(self, tmp_path: Path, encoder: Pixels) -> None:
        root = make_root(tmp_path / "root")
        first = slat(root, token_cache=tmp_path / "cache")
        batches = [first.batch([0, 1], torch.Generator().manual_seed(5)) for _ in range(2)]
        assert encoder.seen == 2
        batches.append(slat(root, token_cache=tmp_path / "cache").batch([0, 1], torch.Generator().manual_seed(5)))
        assert encoder.seen == 2
        assert torch.equal(batches[0].cond.tokens, batches[2].cond.tokens)  # type: ignore[arg-type]
        plain = slat(root).batch([0, 1], torch.Generator().manual_seed(5))
        torch.testing.assert_close(plain.cond.tokens, batches[0].cond.tokens, rtol=1e-3, atol=1e-4)

    def test_other_pictures_weights_and_damaged_files_are_encoded_anew(self, tmp_path: Path, encoder: Pixels) -> None:
        root = make_root(tmp_path / "root")
        draw = torch.Generator
        slat(root, token_cache=tmp_path / "cache").batch([0], draw())
        for path in (root / "renders_cond" / sha(0)).glob("*.png"):
            Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)
        slat(root, token_cache=tmp_path / "cache").batch([0], draw())
        assert encoder.seen == 2
        for path in (tmp_path / "cache").rglob("*.safetensors"):
            path.write_bytes(b"x")
        slat(root, token_cache=tmp_path / "cache").batch([0], draw())
        assert encoder.seen == 3
        encoder.scale.data.mul_(2)
        slat(root, token_cache=tmp_path / "cache").batch([0], draw())
        assert encoder.seen == 4
        slat(root, token_cache=tmp_path / "cache", image_size=28).batch([0], draw())
        assert encoder.seen == 5


class TestMisfits:
    @pytest.mark.parametrize(
        ("backbone", "keys", "text"),
        [
            (
                Stub(in_channels=4),
                {},
                "latents with in_channels 8; the teacher has in_channels 4",
            ),
            (Stub(cond_channels=1024), {}, "data.encoder: 'pixels' gives tokens of width 3; the teacher takes 1024"),
            (Stub(), {"normalisation": "teacher"}, "data.normalisation: got 'teacher'; accepted: stored"),
            (Stub(), {"normalisation": {"mean": [0.0], "std": [1.0]}}, "1 channels"),
        ],
    )
    def test_of_structured_latents(
        self, tmp_path: Path, encoder: Pixels, backbone: Stub, keys: dict[str, Any], text: str
    ) -> None:
        with pytest.raises(FewstepError, match=re.escape(text)):
            slat(make_root(tmp_path / "root", 2), backbone, **keys)

    def test_of_structure_latents(self, tmp_path: Path, encoder: Pixels) -> None:
        with pytest.raises(FewstepError, match="latents with resolution 4; the teacher has resolution 16"):
            structure(make_root(tmp_path / "root", 2), Stub(resolution=16))

    def test_dense_data_for_a_packed_network(self, tmp_path: Path, encoder: Pixels) -> None:
        class PackedOnly(Stub):
            provides = frozenset({"packed"})

        with pytest.raises(FewstepError, match="StructureLatents is dense, which PackedOnly cannot take"):
            structure(make_root(tmp_path / "root", 2), PackedOnly())

    def test_an_encoder_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(FewstepError, match=r"data\.encoder: .*unknown image encoder 'dinov3'"):
            slat(make_root(tmp_path / "root", 2), encoder="dinov3")


class TestPublishedOrder:
    def test_as_one_process_of_the_reference(self, tmp_path: Path, encoder: Pixels) -> None:
        root = make_root(tmp_path / "root", 11)
        for data, loads in (
            (slat(root, order="published"), [10 + 7 * i for i in range(11)]),
            (structure(root, order="published"), None),
        ):
            assert isinstance(data, OfficialDataset)
            for step in (0, 1, 2, 5):
                epoch, place = divmod(step, 11 // 4)  # batches of 2 x 2; the last three objects of an epoch are dropped
                order = torch.randperm(11, generator=torch.Generator().manual_seed(3 + epoch)).tolist()
                block = order[4 * place : 4 * place + 4]
                passes = [data.indices(step, 2, 3, rank, 2) for rank in range(2)]
                assert sorted(passes[0] + passes[1]) == sorted(block)
                if loads is None:
                    assert passes == [block[:2], block[2:]]
                else:
                    first = max(block, key=lambda i: loads[i])
                    assert passes[0][0] == first

    def test_too_few_objects_and_a_budget_are_refused(self, tmp_path: Path, encoder: Pixels) -> None:
        root = make_root(tmp_path / "root", 3)
        with pytest.raises(FewstepError, match=r"data\.order: got 'published'; accepted: stream, with 3 objects"):
            slat(root, order="published").training_batch(0, 4, 0)
        with pytest.raises(FewstepError, match="order 'published' takes batches by count"):
            slat(root, order="published", voxel_budget=100)


def test_configs_survive_json() -> None:
    for cls in (StructureConfig, LatentsConfig):
        config = validate(cls, {"roots": "a,b", "token_cache": "none"})
        assert validate(cls, json.loads(config.model_dump_json())) == config
        assert config.roots == (Path("a"), Path("b"))


class TestInspect:
    def test_counts_sizes_and_broken_files(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        root = make_root(tmp_path / "root", 5, cells={1: {"aesthetic_score": ""}, 3: {"aesthetic_score": "1"}})
        assert main(["data", "inspect", str(root), "min_aesthetic=5"]) == 0
        out = capsys.readouterr().out
        assert "in all: 3 objects" in out
        assert "voxels: 10 at 5%, 24 at 50%, 38 at 95%, 38 at 100%" in out
        row = next(line for line in out.splitlines() if "Aesthetic" in line)
        assert re.sub(r"[^\d.]+", " ", row).split()[-3:] == ["3", "2", "1"]  # left, dropped, no value
        (root / "latents" / SLAT / f"{sha(4)}.npz").unlink()
        assert main(["data", "inspect", str(root), "min_aesthetic=5", "--files", "9"]) == 1
        out = capsys.readouterr().out
        assert "read 3 objects: 1 cannot be used" in out
        assert f"{sha(4)}.npz: there is no such file" in out
        words = ("--files", "9", "--teacher", str(NANO / "slat_flow"))
        voxel(40, "uint8")(root / "latents" / SLAT / f"{sha(2)}.npz")
        assert main(["data", "inspect", str(root), "min_aesthetic=5", *words]) == 1
        assert "a voxel at 40; the teacher has 32 cells" in capsys.readouterr().out
        assert main(["data", "inspect", str(root), "--stage", "ss", "--files", "9"]) == 0

    def test_refusals(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        root = str(make_root(tmp_path / "root", 2))
        for words, text in (
            ((root, "--stage", "slt"), "unknown --stage 'slt': accepted are slat, ss; did you mean 'slat'?"),
            ((root, "min_asthetic=5"), "did you mean 'min_aesthetic'?"),
            ((root + "x",), "this is not a folder"),
            (("",), "data.roots: got ''"),
        ):
            assert main(["data", "inspect", *words]) == 2
            assert text in capsys.readouterr().err
