"""Mesh files to a data root in TRELLIS's own layout, and what reads it."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fewstep_trellis.checkpoint import save_model
from fewstep_trellis.conditioning.dino import DinoConditioner
from fewstep_trellis.models import SLatEncoder, SparseStructureEncoder
from fewstep_trellis.official.files import read_frames
from fewstep_trellis.official.table import Row
from fewstep_trellis.official.vae import camera_of, surface_grid
from fewstep_trellis.prepare import cameras, latents, run
from fewstep_trellis.prepare.objects import Pictures
from PIL import Image
from pipeline_helpers import COND
from scipy.ndimage import binary_dilation

from fewstep.cli import main
from fewstep.errors import FewstepError
from fewstep.files import sha256

trimesh = pytest.importorskip("trimesh")
pytest.importorskip("open3d", exc_type=ImportError)
SMALL = Pictures(conditions=3, features=5, condition_size=96, feature_size=64)
SLAT_MODEL = "dino_slat_enc_swin8_B_64l8_fp16"


def solid(*boxes: tuple[tuple[float, float, float], tuple[float, float, float]]) -> Any:
    """Boxes by size and centre."""
    parts = [trimesh.creation.box(size) for size, _ in boxes]
    for part, (_, centre) in zip(parts, boxes, strict=True):
        part.apply_translation(centre)
    return trimesh.util.concatenate(parts)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two objects without a symmetry, one of them twice, and a damaged file."""
    folder = tmp_path / "meshes"
    (folder / "deep").mkdir(parents=True)
    solid(((1, 0.2, 0.2), (0, 0, 0)), ((0.2, 0.2, 0.8), (0.4, 0, 0.4))).export(folder / "hook.stl")
    solid(((0.8, 0.8, 0.1), (0, 0, 0)), ((0.8, 0.1, 0.7), (0, 0.35, 0.4))).export(folder / "deep" / "seat.ply")
    (folder / "twin.stl").write_bytes((folder / "hook.stl").read_bytes())
    (folder / "bad.glb").write_bytes(b"glTF no more")
    return folder


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small encoders under the published names; structure latents are as large as the shipped flow takes them."""
    folder = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    save_model(SparseStructureEncoder(1, 8, 1, [8, 8, 8, 8], 1, use_fp16=True), folder / latents.STRUCTURE_ENCODER)
    slat = SLatEncoder(64, COND, 32, 8, num_blocks=1, num_heads=2, window_size=4, use_fp16=True)
    save_model(slat, folder / latents.LATENT_ENCODER)
    return folder


def wider(mask: Any) -> Any:
    """By two pixels: voxels reach over the surface, by less than that."""
    return binary_dilation(mask, np.ones((3, 3)), 2)


def row_of(root: Path, name: str) -> Row:
    with (root / "metadata.csv").open(newline="") as file:
        cells = next(row for row in csv.DictReader(file) if row["file_identifier"] == name)
    return Row(root, 0, cells)


def test_condition_cameras_see_the_whole_sphere_and_go_all_around() -> None:
    shots = cameras.condition_shots("object", 200, 0)
    assert shots == cameras.condition_shots("object", 200, 0) != cameras.condition_shots("object", 200, 1)
    for shot in shots:
        assert shot.distance * math.sin(math.radians(shot.fov / 2)) == pytest.approx(math.sqrt(3) / 2)
    fovs = np.array([shot.fov for shot in shots])
    assert fovs.min() > 10
    assert fovs.max() < 70
    nearness = np.array([shot.distance for shot in shots]) ** -2.0  # uniform: its mean is the middle
    low, high = (math.sin(math.radians(fov / 2)) ** 2 / 0.75 for fov in (10, 70))
    assert nearness.mean() == pytest.approx((low + high) / 2, rel=0.1)
    away = np.stack([shot.camera.axes[2] for shot in shots])
    assert np.abs(away.mean(0)).max() < 0.02, "no side is preferred"
    assert (away**2).mean(0) == pytest.approx([1 / 3] * 3, abs=0.01)
    assert {(shot.distance, shot.fov) for shot in cameras.feature_shots("object", 9, 0)} == {(2.0, 40.0)}


def test_the_files_of_an_object(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pictures, voxels and cameras are of one object: the voxels seen through each camera cover its picture."""
    root = tmp_path / "root"
    record = run.prepare_official(source, root, pictures=SMALL, workers=1)
    assert record["counts"] == {"objects": 2, "skipped": 2}
    said = capsys.readouterr().out
    assert "skipped meshes: bad (bad.glb): the model bad.glb cannot be read" in said
    assert "skipped meshes: twin (twin.stl): the same file as hook.stl" in said
    row = row_of(root, "hook.stl")
    assert row.sha256 == sha256(source / "hook.stl")
    assert Path(row.cells["local_path"]) == source / "hook.stl"
    assert [row.flag(name) for name in ("rendered", "voxelized", "cond_rendered")] == [True] * 3
    grid = surface_grid(row)[0]
    assert int(grid.sum()) == row.number("num_voxels")
    cells = grid.nonzero()
    assert (cells.amax(0) - cells.amin(0) + 1).tolist() == [64, 14, 58], "sizes 1, 0.2 and 0.9"
    mesh = trimesh.load_mesh(root / "renders" / row.sha256 / "mesh.ply")
    assert mesh.extents == pytest.approx([1, 0.2, 0.9])
    for folder, count, size in (("renders_cond", 3, 96), ("renders", 5, 64)):
        frames = read_frames(root / folder / row.sha256)
        assert len(frames) == count
        for frame in frames:
            alpha = np.asarray(Image.open(root / folder / row.sha256 / frame["file_path"]).getchannel("A")) > 0
            assert alpha.shape == (size, size)
            places = latents.project((cells + 0.5) / 64 - 0.5, *camera_of(frame)) * size
            drawn = np.zeros_like(alpha)
            at = places.long().clamp(0, size - 1).numpy()
            drawn[at[:, 1], at[:, 0]] = True
            assert not (drawn & ~wider(alpha)).any(), "voxels lie on the object"
            assert not (alpha & ~wider(drawn)).any(), "and everywhere on it"


def test_voxel_features_are_means_over_the_views(source: Path, tmp_path: Path, tiny_encoder: Path) -> None:
    root = tmp_path / "root"
    run.prepare_official(source, root, pictures=SMALL, workers=1)
    row, encoder = row_of(root, "deep/seat.ply"), DinoConditioner.from_folder(tiny_encoder)
    coords = surface_grid(row)[0].nonzero()[::500]
    found = latents.voxel_features(row, encoder, coords)
    folder = root / "renders" / row.sha256
    expected = np.zeros((len(coords), encoder.channels))
    frames = json.loads((folder / "transforms.json").read_text())["frames"]
    for frame in frames:
        picture = Image.open(folder / frame["file_path"]).resize((28, 28), Image.Resampling.LANCZOS)
        rgba = np.asarray(picture) / np.float32(255)
        pixels = torch.from_numpy(rgba[..., :3] * rgba[..., 3:]).permute(2, 0, 1)[None]
        patches = encoder.prenorm(pixels)[0, 3:].reshape(2, 2, -1).numpy()  # after the class and two registers
        padded = np.pad(patches, ((1, 1), (1, 1), (0, 0)))
        turn = np.array(frame["transform_matrix"])
        for number, cell in enumerate(coords.numpy()):
            right, up, back = ((cell + 0.5) / 64 - 0.5 - turn[:3, 3]) @ turn[:3, :3]
            focal = 1 / math.tan(frame["camera_angle_x"] / 2)
            column, line = (1 + focal * right / -back), (1 - focal * up / -back)  # in tokens of a 2 x 2 map
            x, y = column + 0.5, line + 0.5  # of the padded map: its first token's centre is at 1
            i, j = int(y), int(x)
            a, b = y - i, x - j
            top = padded[i, j] * (1 - b) + padded[i, j + 1] * b
            low = padded[i + 1, j] * (1 - b) + padded[i + 1, j + 1] * b
            expected[number] += (top * (1 - a) + low * a) / len(frames)
    assert found.numpy() == pytest.approx(expected, abs=1e-4)


def test_the_command_makes_a_root_that_is_trained_on(
    source: Path, encoders: Path, tiny_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(Pictures.__init__, "__defaults__", (24, 5, 96, 64, 0))
    root = tmp_path / "root"
    command = ["data", "prepare", "meshes", "-s", str(source), "-o", str(root), "--official", "--views", "3"]
    command += ["--workers", "1", "--device", "cpu"]
    assert main([*command, "--stage", "ss", "--encoders", str(encoders)]) == 0
    assert "root: objects 2, skipped 2" in capsys.readouterr().out
    assert not (root / "renders").exists()
    assert main(["data", "inspect", str(root), "--stage", "ss", "--files", "9"]) == 0
    assert "in all: 2 objects" in capsys.readouterr().out
    assert main(["data", "inspect", str(root), "--stage", "slat"]) == 2, "no latents of the second stage yet"
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.*") if path.parent != root}
    both = [*command, "--encoders", str(encoders), "--image-encoder", str(tiny_encoder)]
    assert main(both) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}, "what is there is kept"
    keys = [f"latent_model={SLAT_MODEL}"]
    capsys.readouterr()
    assert main(["data", "inspect", str(root), *keys, "--stage", "slat", "--files", "9"]) == 0
    out = capsys.readouterr().out
    assert "in all: 2 objects" in out
    assert "read 2 objects: 0 cannot be used" in out
    arrays = dict(np.load(root / "latents" / SLAT_MODEL / f"{sha256(source / 'hook.stl')}.npz"))
    assert arrays["coords"].dtype == np.uint8
    assert (arrays["coords"] == surface_grid(row_of(root, "hook.stl"))[0].nonzero().numpy()).all()
    assert arrays["feats"].shape == (len(arrays["coords"]), 8)
    run_folder = tmp_path / "run"
    train = ["distill", "-m", "cm", "-b", "trellis", "--stage", "ss", "--dataset", "trellis-ss", "-o", str(run_folder)]
    train += [f"data.roots={root}", "data.encoder=efficientnet-lite0", "train.steps=2", "train.batch_size=2"]
    assert main(train) == 2
    assert (
        "(2, 3, 518, 518); accepted: [B, 3, 224, 224] for efficientnet-lite0: of a data set, data.image_size=224"
        in (capsys.readouterr().err)
    )
    assert main([*train, "data.image_size=224"]) == 0, capsys.readouterr().err
    assert (run_folder / "student").exists()


def test_an_interrupted_call_goes_on_and_other_settings_are_refused(source: Path, tmp_path: Path) -> None:
    root, plain = tmp_path / "root", {"pictures": SMALL, "workers": 1}
    seen: list[str] = []

    def interrupted(done: int, total: int, name: str) -> None:
        seen.append(name)
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.prepare_official(source, root, **plain, progress=interrupted)  # type: ignore[arg-type]
    assert not (root / "metadata.csv").exists()
    kept = {path: path.stat().st_mtime_ns for path in root.rglob("*.png")}
    assert kept
    assert run.prepare_official(source, root, **plain)["counts"]["objects"] == 2  # type: ignore[arg-type]
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in root.rglob("*.png")}.items()
    for change, text in (({"up": "y"}, "up auto, now y"), ({"pictures": Pictures(4)}, "conditions 3, now 4")):
        with pytest.raises(FewstepError, match=text):
            run.prepare_official(source, root, **{**plain, **change})  # type: ignore[arg-type]
    with pytest.raises(FewstepError, match=r"a folder that does not exist yet, or one with a fewstep\.json"):
        run.prepare_official(source, source, **plain)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--official", "--like", "x"], "--like: got 'x'; accepted: nothing with --official"),
        (["--stage", "ss"], "--stage: got 'ss'; accepted: nothing without --official"),
        (["--official", "--stage", "bot"], "did you mean 'both'?"),
        (["--official", "--encoders", "{meshes}"], "--encoders: got '{meshes}', a folder without"),
        (
            ["--official", "--encoders", "{encoders}", "--image-encoder", "efficientnet-lite0"],
            "a DINOv2 with registers",
        ),
        (["--official", "--encoders", "none", "--device", "warp"], "--device: got 'warp'"),
    ],
)
def test_what_is_refused_before_anything_is_written(
    arguments: list[str], text: str, source: Path, encoders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"meshes": source, "encoders": encoders}
    out = tmp_path / "root"
    command = ["data", "prepare", "meshes", "-s", str(source), "-o", str(out)]
    assert main([*command, *(word.format(**names) for word in arguments)]) == 2
    assert text.format(**names) in capsys.readouterr().err
    assert not out.exists()
