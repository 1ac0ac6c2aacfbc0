"""Data in TRELLIS.2's layout: objects over several tables, items, and students of every stage trained on them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fewstep_trellis.checkpoint import load_model, save_model
from fewstep_trellis2.dataset import sets
from fewstep_trellis2.dataset.config import ShapeDataConfig, StructureDataConfig, TextureDataConfig
from fewstep_trellis2.dataset.roots import merged, read_roots
from fewstep_trellis2.dataset.sets import ShapeData, StructureData, TextureData
from fewstep_trellis2.latents import TextureCondition, TextureStage
from fewstep_trellis2.models import MODELS, SLatFlowModel, SparseStructureFlowModel
from fewstep_trellis2.suite import Latents, LatentSuite
from official_root import Pixels, sha
from PIL import Image
from torch import Tensor

from fewstep.cli import main
from fewstep.config.base import validate
from fewstep.core.layout import Dense, Layout, Packed
from fewstep.errors import FewstepError

WIDTH, COUNTS = 4, [9, 20, 5, 30]
TINY: dict[str, Any] = {"model_channels": 12, "cond_channels": 3, "num_blocks": 1, "num_heads": 2, "mlp_ratio": 2}
TINY |= {"share_mod": True, "pe_mode": "rope", "qk_rms_norm": True, "rope_freq": [1.0, 10000.0], "out_channels": WIDTH}
NUMBERS = {"mean": [1.0, 2.0, 3.0, 4.0], "std": [2.0, 2.0, 4.0, 0.5]}


def table(folder: Path, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def make_root(folder: Path) -> Path:
    """Four objects, of which the third has a low score; the fourth has no shape latents in its table."""
    draws = np.random.default_rng(0)
    names = [sha(i) for i in range(len(COUNTS))]
    table(folder, [{"sha256": name, "aesthetic_score": 4.0 if i == 2 else 4.5} for i, name in enumerate(names)])
    table(folder / "views", [{"sha256": name, "cond_rendered": True} for name in names])
    table(folder / "ss", [{"sha256": name, "ss_latent_encoded": True} for name in reversed(names)])
    for place, stem, kept in (("shape", "shape_latent", names[:3]), ("pbr", "pbr_latent", names)):
        rows = [{"sha256": n, f"{stem}_encoded": True, f"{stem}_tokens": c} for n, c in zip(kept, COUNTS, strict=False)]
        table(folder / place, rows)
    for name, count in zip(names, COUNTS, strict=True):
        np.savez(folder / "ss" / f"{name}.npz", z=draws.normal(size=(WIDTH, 3, 3, 3)).astype(np.float32))
        coords = np.stack(np.unravel_index(draws.permutation(40**3)[:count], (40,) * 3), 1).astype(np.uint8)
        for place in ("shape", "pbr"):
            feats = draws.normal(size=(count, WIDTH)).astype(np.float32)
            np.savez(folder / place / f"{name}.npz", coords=coords, feats=feats)
        (folder / "views" / name).mkdir()
        pixels = np.zeros((40, 40, 4), np.uint8)
        pixels[5:30, 10:22] = (200, 90, 40, 255)
        Image.fromarray(pixels).save(folder / "views" / name / "0.png")
        (folder / "views" / name / "transforms.json").write_text(json.dumps({"frames": [{"file_path": "0.png"}]}))
    roles = {"ss_latent": "ss", "shape_latent": "shape", "pbr_latent": "pbr", "render_cond": "views"}
    file = folder / "roots.json"
    file.write_text(json.dumps({"Set": {"base": ".", **roles}}))
    return file


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pixels = Pixels()
    monkeypatch.setattr(sets, "image_conditioner", lambda name: pixels)
    return make_root(tmp_path / "root")


def test_tables_are_joined_by_object(roots: Path) -> None:
    (root,) = read_roots((roots,))
    rows = merged(root)
    assert [row.sha256 for row in rows] == [sha(i) for i in range(4)]
    assert [row.number("shape_latent_tokens") for row in rows] == [9, 20, 5, None]
    assert [row.flag("ss_latent_encoded") for row in rows] == [True] * 4


def stage(cls: type, out: int = 0) -> TextureStage:
    model = cls(resolution=3, in_channels=WIDTH + out, **TINY)
    numbers = validate(sets.Normalisation, NUMBERS)
    backbone = TextureStage(model, numbers, numbers)
    backbone.provides = frozenset({"dense", "packed"})  # type: ignore[misc]
    return backbone


def test_filters_and_bounds_are_inclusive(roots: Path) -> None:
    backbone, values = stage(SLatFlowModel), {"roots": str(roots), "image_size": 16}
    assert len(StructureData(validate(StructureDataConfig, values), backbone)) == 3
    for most, left in ((20, 2), (19, 1)):
        data = ShapeData(validate(ShapeDataConfig, values | {"max_tokens": most}), backbone)
        assert list(data.loads()) == COUNTS[:left]


def test_texture_items_have_the_shape_of_the_same_voxels(roots: Path) -> None:
    data = TextureData(validate(TextureDataConfig, {"roots": str(roots), "image_size": 16}), stage(SLatFlowModel))
    batch = data.batch([1, 0], torch.Generator())
    alone = data.batch([0], torch.Generator()).cond
    assert isinstance(alone, TextureCondition)
    assert alone.shape is not None
    assert alone.shape.shape[1] == 20  # the largest of the set, so that batches can be put together
    assert isinstance(batch.cond, TextureCondition)
    assert isinstance(batch.layout, Packed)
    mean, std = (torch.tensor(NUMBERS[name]) for name in ("mean", "std"))
    for place, found in (("pbr", batch.x0), ("shape", batch.cond.rows(batch.layout))):
        stored = [np.load(roots.parent / place / f"{sha(i)}.npz")["feats"] for i in (1, 0)]
        torch.testing.assert_close(found, (torch.from_numpy(np.concatenate(stored)) - mean) / std)


def test_texture_of_other_voxels_is_refused(roots: Path) -> None:
    for i in range(2):
        path = roots.parent / "pbr" / f"{sha(i)}.npz"
        arrays = dict(np.load(path))
        np.savez(path, coords=arrays["coords"][::-1], feats=arrays["feats"])
    with pytest.raises(FewstepError, match="voxels that differ from those of the shape latents"):
        TextureData(validate(TextureDataConfig, {"roots": str(roots), "image_size": 16}), stage(SLatFlowModel))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "{name: {role: folder}}"),
        ('{"Set": {"bose": "."}}', "unknown role of 'Set' .* 'bose'.*did you mean 'base'"),
        ('{"Set": {"base": "nowhere"}}', "a folder with a metadata.csv"),
    ],
)
def test_roots_are_checked(roots: Path, content: str, message: str) -> None:
    roots.write_text(content)
    with pytest.raises(FewstepError, match=message):
        read_roots((roots,))


STAGES = {"structure": SparseStructureFlowModel, "shape": SLatFlowModel, "shape-1024": SLatFlowModel}
STAGES["texture"] = SLatFlowModel


@pytest.mark.parametrize("name", STAGES)
def test_a_distilled_student_is_the_official_class(name: str, roots: Path, tmp_path: Path) -> None:
    cls, beside = STAGES[name], WIDTH if name == "texture" else 0
    model = cls(resolution=3, in_channels=WIDTH + beside, **TINY)
    torch.nn.init.normal_(model.out_layer.weight)
    save_model(model, tmp_path / "teacher")
    keys = [f"backbone.teacher={tmp_path / 'teacher'}", f"data.roots={roots}", "data.image_size=16", "train.threads=1"]
    keys += ["train.steps=1", "train.batch_size=2", "train.samples_every=1"]
    if name != "structure":
        keys += ["data.normalisation=stored"]
    if name == "texture":
        keys += ["data.shape_normalisation=stored"]
    out = tmp_path / "run"
    assert main(["distill", "-m", "mdt-vm", "-b", "trellis2", "--stage", name, "--out", str(out), *keys]) == 0
    found = load_model(next(out.rglob("model.safetensors")), models=MODELS)
    assert type(found) is cls
    assert found.args == model.args  # type: ignore[comparison-overlap]
    assert not torch.equal(found.out_layer.weight, model.out_layer.weight)
    assert main(["sample", str(out), "--count", "1", "--out", str(tmp_path / "samples.npz")]) == 0
    with np.load(tmp_path / "samples.npz") as arrays:
        assert all(np.isfinite(arrays[key]).all() for key in arrays)
    first, last = (np.asarray(Image.open(path)) for path in sorted((out / "samples").iterdir()))
    assert first.shape == last.shape
    assert (first != last).any(), "the student has changed"
    assert (first[:300] == last[:300]).all(), "below the same pictures and true latents"
    if name in ("structure", "texture"):
        asked = ["bench", "-b", "trellis2", "--stage", name, "--student", str(out), "--out", str(tmp_path / "bench")]
        measured = ["--steps", "1", "--seeds", "0,1", "teacher_steps=2", "resamples=3", "threads=1"]
        assert main([*asked, *measured, *(key for key in keys if not key.startswith("train."))]) == 0
        with (tmp_path / "bench" / "rows.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["method"] == "mdt-vm" and row["seed"] == "0"]
        values = {row["metric"]: float(row["value"]) for row in rows}
        assert values["teacher_rms"] > 0
        assert values["agree_latent"] < 1
        assert values["seconds_flow"] > 0
        assert (tmp_path / "bench" / "sheet.png").is_file()


@pytest.mark.parametrize(("name", "channels"), [("shape", 2 * WIDTH), ("shape-1024", 2 * WIDTH), ("texture", WIDTH)])
def test_a_teacher_of_another_stage_is_refused_before_training(
    name: str, channels: int, roots: Path, tmp_path: Path, capsys: Any
) -> None:
    save_model(SLatFlowModel(resolution=3, in_channels=channels, **TINY), tmp_path / "teacher")
    asked = ["distill", "-m", "mdt-vm", "-b", "trellis2", "--stage", name, "--out", str(tmp_path / "run")]
    assert main([*asked, f"backbone.teacher={tmp_path / 'teacher'}", f"data.roots={roots}"]) == 2
    assert f"{'texture' if name == 'texture' else 'shape'} flow for stage '{name}'" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "left"), [("structure", 3), ("shape", 2), ("texture", 2)])
def test_inspection_counts_and_finds_what_training_would(name: str, left: int, roots: Path, capsys: Any) -> None:
    asked = ["data", "inspect", "--backbone", "trellis2", str(roots), "--stage", name, "--files", "9"]
    assert main(asked) == 0
    assert f"read {left} objects: 0 cannot be used" in capsys.readouterr().out
    path = roots.parent / {"structure": "ss", "shape": "shape", "texture": "pbr"}[name] / f"{sha(0)}.npz"
    if name == "texture":  # voxels in another order than those of the shape
        arrays = dict(np.load(path))
        np.savez(path, coords=arrays["coords"][::-1], feats=arrays["feats"])
    else:
        path.unlink()
    assert main(asked) == 1
    assert f"{sha(0)}.npz" in capsys.readouterr().out
    assert main([*asked[:6], "shap"]) == 2
    assert "unknown --stage 'shap': accepted are" in capsys.readouterr().err


def test_inspection_takes_a_teacher(roots: Path, tmp_path: Path, capsys: Any) -> None:
    """The texture flow takes shape latents beside its own: what counts is what it makes."""
    save_model(SLatFlowModel(resolution=3, in_channels=2 * WIDTH, **TINY), tmp_path / "fits")
    save_model(SLatFlowModel(resolution=3, in_channels=5, **TINY | {"out_channels": 5}), tmp_path / "other")
    asked = ["data", "inspect", "--backbone", "trellis2", str(roots), "--stage", "texture", "--files", "9", "--teacher"]
    assert main([*asked, str(tmp_path / "fits")]) == 0
    assert main([*asked, str(tmp_path / "other")]) == 1
    assert "the teacher has in_channels 5" in capsys.readouterr().out


class TestLatentSuite:
    """The measures of latents against plain formulas."""

    @staticmethod
    def suite(truth: Tensor, layout: Layout) -> LatentSuite:
        suite = LatentSuite.__new__(LatentSuite)
        suite._batch, suite._true = None, Latents.of(truth, layout)
        return suite

    def test_of_voxels(self) -> None:
        layout = Packed.of_lengths([3, 500, 70], torch.randint(0, 40, (573, 3), dtype=torch.int32))
        truth, other = torch.randn(2, 573, WIDTH)
        suite = self.suite(truth, layout)
        own, teacher = suite.decode(truth + 2, layout), suite.decode(other, layout)
        record, same = suite.record(own, teacher), suite.record(teacher, teacher)
        found = suite.score(record, same, None, torch.ones(1, 3, dtype=torch.float64))
        assert record["rms"].tolist() == pytest.approx([2.0] * 3)
        assert float(found["frechet"]) == pytest.approx(4.0 * WIDTH, rel=1e-4)  # a shift: the squared distance of means
        gap = (truth + 2 - other).square().sum()
        assert float(found["agree_latent"]) == pytest.approx(float(1 - gap / (other - other.mean(0)).square().sum()))
        rms = [float((truth + 2 - other)[part].square().mean().sqrt()) for part in (slice(3), slice(3, 503))]
        assert record["teacher_rms"][:2].tolist() == pytest.approx(rms)

    def test_a_grid_is_a_row_for_each_of_its_cells(self) -> None:
        x = torch.randn(2, WIDTH, 3, 3, 3)
        found = Latents.of(x, Dense(2))
        assert found.places.coords is not None
        for row in (0, 5, 30):
            a, b, c = found.places.coords[row].tolist()
            assert torch.equal(found.rows[row], x[row // 27, :, a, b, c])
        suite = self.suite(x, Dense(2))
        assert suite.record(found, found)["rms"].tolist() == [0.0, 0.0]
