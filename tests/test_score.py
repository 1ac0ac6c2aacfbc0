"""``fewstep score``: distances against closed forms and other implementations, pairing, failures, statistics, files."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fewstep_shapes3d.export.camera import Perspective
from fewstep_shapes3d.export.ply import write_ply
from fewstep_shapes3d.measures import shapes
from fewstep_shapes3d.representations import Gaussians
from fewstep_shapes3d.score import alignment, objects, work
from fewstep_shapes3d.score.alignment import IDENTITY, Floats, Similarity, align, fitted
from fewstep_shapes3d.score.distances import surface_distances
from fewstep_shapes3d.score.encoders import encoders
from fewstep_shapes3d.score.objects import Seeing, read_object
from fewstep_shapes3d.score.pairing import labelled
from fewstep_shapes3d.score.run import score
from fewstep_shapes3d.score.summary import Scored, statistics, summarise
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from fewstep.cli import main
from fewstep.errors import FewstepError

trimesh = pytest.importorskip("trimesh")
TURN = Rotation.from_euler("xyz", (20, -35, 130), degrees=True).as_matrix()


def sphere(count: int) -> Floats:
    """Unit vectors on a spiral."""
    at = np.arange(count) + 0.5
    height, angle = 1 - 2 * at / count, math.pi * (1 + 5**0.5) * at
    flat = np.sqrt(1 - height**2)
    return np.stack([flat * np.cos(angle), flat * np.sin(angle), height], 1)


def ell(count: int = 1500, seed: int = 0) -> Floats:
    """Points on a body without symmetry: three boxes of different lengths that meet in a corner."""
    draw = np.random.default_rng(seed)
    sizes = np.array([[1.0, 0.1, 0.15], [0.1, 0.6, 0.1], [0.12, 0.1, 0.35]])
    return draw.random((count, 3)) * sizes[draw.integers(0, 3, count)] - 0.2


def plane(width: float, height: float, steps: int = 40) -> Floats:
    """A grid on [0, width] x [0, 1] at a height."""
    at = (np.arange(steps) + 0.5) / steps
    x, y = np.meshgrid(at[at < width], at)
    return np.stack([x.ravel(), y.ravel(), np.full(x.size, height)], 1)


def test_the_distance_of_two_spheres_is_the_difference_of_their_radii() -> None:
    found = surface_distances(0.45 * sphere(3000), 0.4 * sphere(3000), (0.04, 0.06), ("unaligned",))
    assert found["chamfer/unaligned"] == pytest.approx(0.05, rel=1e-9)
    assert found["chamfer_squared/unaligned"] == pytest.approx(2 * 0.05**2, rel=1e-9)
    assert (found["fscore@0.04/unaligned"], found["fscore@0.06/unaligned"]) == (0, 1)


def test_the_fscore_of_a_shifted_plane_and_of_half_a_plane() -> None:
    shifted = surface_distances(plane(1, 0.021), plane(1, 0), (0.02, 0.022), ("unaligned",))
    assert (shifted["fscore@0.02/unaligned"], shifted["fscore@0.022/unaligned"]) == (0, 1)
    half = surface_distances(plane(0.5, 0), plane(1, 0), (0.001,), ("unaligned",))
    assert half["fscore@0.001/unaligned"] == pytest.approx(2 / 3)  # precision 1, recall 1/2


def test_a_turned_and_scaled_copy_is_no_distance_away_from_a_similarity() -> None:
    truth = ell()
    found = 0.7 * truth[::-1] @ TURN.T + (0.1, -0.2, 0.05)
    values = surface_distances(found, truth, (0.01,))
    assert values["chamfer/similarity"] < 1e-3  # points of the coarse search are others on both sides
    assert values["fscore@0.01/similarity"] == pytest.approx(1, abs=0.01)
    assert 0.02 < values["chamfer/rigid"] < values["chamfer/unaligned"]
    only_turned = surface_distances(truth[::-1] @ TURN.T + 0.1, truth, (0.01,))
    assert only_turned["chamfer/rigid"] < 1e-3


def test_a_mirror_image_stays_away() -> None:
    truth = ell()
    assert surface_distances(truth * (-1, 1, 1), truth, (0.01,))["chamfer/similarity"] > 0.01
    assert np.linalg.det(fitted(truth, truth * (-1, 1, 1), False).rotation) == pytest.approx(1)


@pytest.mark.slow
def test_an_alignment_is_never_worse_than_a_smaller_one() -> None:
    for seed in range(2):
        found, truth = np.random.default_rng(seed).random((2, 600, 3))
        values = surface_distances(found**2, truth, (0.01,))
        assert values["chamfer/similarity"] <= values["chamfer/rigid"] <= values["chamfer/unaligned"]


def test_distances_are_those_of_all_pairs_and_of_open3d() -> None:
    found, truth = ell(700, 1), ell(900, 2)
    values, apart = surface_distances(found, truth, (0.02,), ("unaligned",)), cdist(found, truth)
    forth, back = apart.min(1), apart.min(0)
    assert values["chamfer/unaligned"] == pytest.approx((forth.mean() + back.mean()) / 2, rel=1e-9)
    shares = (forth <= 0.02).mean(), (back <= 0.02).mean()
    assert values["fscore@0.02/unaligned"] == pytest.approx(2 * shares[0] * shares[1] / sum(shares))
    o3d = pytest.importorskip("open3d")
    clouds = [o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points)) for points in (found, truth)]
    both = [np.mean(clouds[i].compute_point_cloud_distance(clouds[1 - i])) for i in (0, 1)]
    assert values["chamfer/unaligned"] == pytest.approx(np.mean(both), rel=1e-6)


@pytest.mark.parametrize("scaled", [False, True])
def test_the_fit_is_that_of_open3d(scaled: bool) -> None:
    o3d = pytest.importorskip("open3d")
    points = ell(200)
    goals = 1.3 * points @ TURN.T + 0.2 + 0.05 * np.random.default_rng(3).normal(size=points.shape)
    clouds = [o3d.geometry.PointCloud(o3d.utility.Vector3dVector(one)) for one in (points, goals)]
    pairs = o3d.utility.Vector2iVector(np.stack([np.arange(200)] * 2, 1).astype(np.int32))
    estimation = o3d.pipelines.registration.TransformationEstimationPointToPoint(with_scaling=scaled)
    matrix = estimation.compute_transformation(*clouds, pairs)
    own = fitted(points, goals, scaled)
    assert np.allclose(matrix[:3, :3], own.scale * own.rotation, atol=1e-9)
    assert np.allclose(matrix[:3, 3], own.shift, atol=1e-9)


def test_no_alignment_is_the_identity() -> None:
    points = ell(500)
    assert align(points, points, ["unaligned"]) == {"unaligned": IDENTITY}
    assert np.allclose(Similarity(2.0, TURN, np.ones(3))(points), 2 * points @ TURN.T + 1)


def test_the_lens_sees_what_the_rays_see() -> None:
    points = torch.tensor([[0.3, -0.2, 0.4], [-0.4, 0.1, -0.3]], dtype=torch.float32)
    camera = Perspective(40.0, 30.0, 256)
    slopes = torch.autograd.functional.jacobian(lambda x: camera.project(x)[:, :2].sum(0), points)
    assert torch.allclose(camera.slopes(points), slopes.permute(1, 0, 2), rtol=1e-4)
    pytest.importorskip("open3d")
    from fewstep_shapes3d.data.materials import NEUTRAL, Material
    from fewstep_shapes3d.data.mesh import Mesh
    from fewstep_shapes3d.data.views import Camera, Renderer

    for point in points.numpy().astype(float):
        ball = trimesh.creation.icosphere(1, 0.02)
        vertices = ball.vertices + point
        mesh = Mesh(
            vertices, ball.faces, np.zeros((len(vertices), 2)), np.zeros(len(ball.faces), int), [Material(NEUTRAL)]
        )
        alpha = Renderer(mesh).render(Camera(40.0, 30.0), 256, 1, 2.0)[..., 3]
        seen = np.argwhere(alpha > 0).mean(0)[::-1] + 0.5
        assert np.allclose(seen, camera.project(torch.tensor(point)[None]).numpy()[0, :2], atol=0.5)


def features(seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(40, 4, 6)) + shift)


def test_the_frechet_distance_is_that_of_two_gaussians() -> None:
    x, y = features(0), features(1, 0.5)
    found = statistics(Scored({}, {"net": x}), {"net": y}, 40)
    a, b = (part.reshape(-1, 6).numpy() for part in (x, y))
    cross = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * cross)
    assert found["frechet/net", "set"] == pytest.approx(expected, rel=1e-6)
    shifted = statistics(Scored({}, {"net": y + 0.25}), {"net": y}, 40)
    assert shifted["frechet/net", "set"] == pytest.approx(6 * 0.25**2, rel=1e-6)


def test_the_frechet_distance_of_fewer_rows_than_features_is_exact() -> None:
    x, y = (torch.from_numpy(np.random.default_rng(seed).normal(size=(3, 4, 200))) for seed in (0, 1))
    a, b = (part.reshape(-1, 200).numpy() for part in (x, y))
    inner = np.linalg.svd((a - a.mean(0)) @ (b - b.mean(0)).T, compute_uv=False).sum() / 11  # the trace of the root
    expected = np.square(a.mean(0) - b.mean(0)).sum() + a.var(0, ddof=1).sum() + b.var(0, ddof=1).sum() - 2 * inner
    found = statistics(Scored({}, {"net": x}), {"net": y}, 3)
    assert found["frechet/net", "set"] == pytest.approx(expected, rel=1e-6)


def test_kernel_distance_is_that_of_all_views() -> None:
    x, y = features(0), features(1, 0.5)
    found = statistics(Scored({}, {"net": x}), {"net": y}, 40)["kid/net", "set"]
    a, b = (part.reshape(-1, 6).numpy() for part in (x, y))
    kernels = [(p @ q.T / 6 + 1) ** 3 for p, q in ((a, a), (b, b), (a, b))]
    within = [(one.sum() - np.trace(one)) / (len(one) * (len(one) - 1)) for one in kernels[:2]]
    assert found == pytest.approx(sum(within) - 2 * kernels[2].mean(), rel=1e-9)


def test_a_difference_is_that_of_pairs() -> None:
    base = torch.from_numpy(np.random.default_rng(0).random(50))
    folders = {name: Scored({"chamfer/rigid": base + shift}, {}) for name, shift in (("a", 0.0), ("b", 0.01))}
    lines, differences = summarise(folders, {}, 50, 400)
    found = {one.statistic: one for one in differences}
    assert found["mean"].difference == pytest.approx(0.01)
    assert found["mean"].half == pytest.approx(0, abs=1e-6)  # all of the spread is shared
    assert (found["mean"].better, found["median"].nearer) == (False, 0.0)
    mean = next(line for line in lines if (line.label, line.statistic) == ("a", "mean"))
    assert mean.half == pytest.approx(2.01 * float(base.std()) / 50**0.5, rel=0.15)
    worst = next(line for line in lines if (line.label, line.statistic) == ("a", "worst"))
    assert worst.value == pytest.approx(float(base.max()))


def gaussians(count: int = 300) -> Gaussians:
    """Small grey ones on a box."""
    points = torch.from_numpy(
        trimesh.sample.sample_surface(trimesh.creation.box((0.5, 0.6, 1)), count, seed=0)[0]
    ).float()
    opacity = torch.full((count, 1), 3.0)
    return Gaussians(points + 0.5, torch.zeros(count, 1, 3), torch.zeros(count, 3), torch.zeros(count, 4), opacity)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six true objects, and a folder that has one of each kind of trouble."""
    folder = tmp_path_factory.mktemp("score")
    for name in ("true", "good", "bad"):
        (folder / name).mkdir()
    shapes = {
        "ball": trimesh.creation.icosphere(2, 0.5),
        "box": trimesh.creation.box((0.5, 1, 0.6)),
        "rod": trimesh.creation.cylinder(0.1, 1),
        "ring": trimesh.creation.annulus(0.3, 0.5, 0.2),
        "cone": trimesh.creation.cone(0.4, 1),
        "pill": trimesh.creation.capsule(1, 0.3, count=(8, 8)),
    }
    for name, mesh in shapes.items():
        mesh.export(folder / "true" / f"{name}.glb")
        grown = mesh.copy().apply_transform(trimesh.transformations.rotation_matrix(0.3, (0, 1, 0)))
        grown.apply_scale(3).export(folder / "good" / f"{name}.obj")
    (folder / "bad" / "ball.glb").write_bytes((folder / "true" / "ball.glb").read_bytes())
    trimesh.Trimesh(shapes["box"].vertices, shapes["box"].faces[1:]).export(folder / "bad" / "box.ply")
    (folder / "bad" / "rod.glb").write_bytes(b"no mesh")
    (folder / "bad" / "ring.obj").write_text("v 0 0 0\nv 1 0 0\n")
    write_ply(gaussians(), folder / "bad" / "pill.ply")
    (folder / "bad" / "other.stl").write_bytes((folder / "bad" / "ball.glb").read_bytes())
    return folder


def command(folder: Path, *more: str) -> list[str]:
    return ["score", f"{folder}/good", f"trouble={folder}/bad", f"{folder}/true", "--workers", "1", "--points", "500",
            "--resamples", "100", "--align", "unaligned,similarity", *more]  # fmt: skip


def rows_of(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    with path.open(newline="") as file:
        return {(row["label"], row["name"]): row for row in csv.DictReader(file)}


class Tiles(torch.nn.Module):
    """In place of the built-in encoder, which takes seconds: the brightness of 16 tiles."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(pictures.mean(1), 4).flatten(1)


def test_a_folder_with_every_kind_of_trouble(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("open3d")
    monkeypatch.setattr(alignment, "STEPS", 3)
    monkeypatch.setattr(alignment, "MORE_STEPS", 10)
    monkeypatch.setattr(objects, "SAMPLES", 1)
    monkeypatch.setattr(objects, "PIXELS", 96)
    monkeypatch.setattr(shapes, "MetricEncoder", Tiles)
    assert main(command(folders, "-o", str(tmp_path / "s"))) == 0
    said = capsys.readouterr().out
    rows = rows_of(tmp_path / "s" / "objects.csv")
    assert {name: rows["trouble", name]["status"] for name in ("ball", "box", "rod", "ring", "cone", "pill")} == {
        "ball": "ok", "box": "ok", "rod": "unreadable", "ring": "empty", "cone": "missing", "pill": "ok"}  # fmt: skip
    assert float(rows["trouble", "ball"]["chamfer/unaligned"]) == 0  # the same file
    assert float(rows["trouble", "ball"]["watertight"]) == 1
    assert float(rows["trouble", "box"]["watertight"]) == 0
    assert float(rows["trouble", "rod"]["chamfer/similarity"]) == pytest.approx(math.sqrt(3))
    assert rows["trouble", "pill"]["watertight"] == "nan"
    assert float(rows["good", "box"]["chamfer/similarity"]) < 0.5 * float(rows["good", "box"]["chamfer/unaligned"])
    for text in ("rod: unreadable", "no true object of the name: other", "missing, counted as failed: cone"):
        assert text in said
    told = json.loads((tmp_path / "s" / "scores.json").read_text())
    assert {line["measure"] for line in told["lines"]} >= {
        "chamfer/similarity",
        "frechet/efficientnet",
        "kid/efficientnet",
    }
    page = (tmp_path / "s" / "report.html").read_text()
    assert "fewstep score" in page
    assert not re.search(r"\{\{\w+\}\}", page)
    assert not re.search(r"(src|href)=\"(?!data:)", page)

    def never(*arguments: Any) -> Any:
        raise AssertionError("measured again")

    before = (tmp_path / "s" / "objects.csv").read_bytes()
    for name in ("read_object", "surface_distances"):
        monkeypatch.setattr(work, name, never)
    assert main(command(folders, "-o", str(tmp_path / "s"))) == 0
    assert (tmp_path / "s" / "objects.csv").read_bytes() == before
    (tmp_path / "new").mkdir()
    for file in (folders / "good").iterdir():
        (tmp_path / "new" / file.name).write_bytes(file.read_bytes().replace(b"v -", b"v 1"))
    with pytest.raises(AssertionError, match="measured again"):  # another content
        score(tmp_path / "new", folders / "true", out=tmp_path / "s", points=500, workers=1, resamples=100)


def test_one_frame_for_both_keeps_a_difference_of_size(folders: Path, tmp_path: Path) -> None:
    for name in ("ball", "box"):
        mesh = trimesh.load_mesh(folders / "true" / f"{name}.glb")
        (tmp_path / "g").mkdir(exist_ok=True)
        mesh.apply_scale(0.9).export(tmp_path / "g" / f"{name}.glb")
    plain = {
        "views": False,
        "points": 500,
        "workers": 1,
        "align": ["unaligned"],
        "missing": "leave-out",
        "resamples": 100,
    }
    own = score({"g": tmp_path / "g"}, folders / "true", out=tmp_path / "a", **plain)  # type: ignore[arg-type]
    same = score({"g": tmp_path / "g"}, folders / "true", out=tmp_path / "b", frame="true", **plain)  # type: ignore[arg-type]
    values = [{row.name: row.values["chamfer/unaligned"] for row in found.objects["g"]} for found in (own, same)]
    assert values[0]["ball"] == pytest.approx(0, abs=1e-6)
    assert values[1]["ball"] == pytest.approx(0.05, rel=0.02)  # radii 0.5 and 0.45, and facets


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["score", "{f}/true"], "got one folder"),
        (["score", "{f}/none", "{f}/true"], "it does not exist"),
        (["score", "{f}/good", "{f}/true/box.glb"], "a folder of mesh files"),
        (["score", "{f}/good", "{f}/good", "{f}/true"], "two folders are called 'good'"),
        (
            ["score", "{f}/good", "{f}/true", "--align", "ridgid"],
            "unknown --align 'ridgid': accepted are rigid, similarity, unaligned; did you mean 'rigid'?",
        ),
        (["score", "{f}/good", "{f}/true", "--thresholds", "0.1,x"], "numbers separated by commas"),
        (["score", "{f}/good", "{f}/true", "--thresholds", "2"], "thresholds"),
        (["score", "{f}/good", "{f}/true", "--inception", "{f}/none.pt"], "inception-2015-12-05.pt"),
        (["score", "{f}/good", "{f}/true", "--inception", "{f}/true/box.glb"], "a TorchScript file"),
        (["score", "{f}/good", "{f}/true", "--dinov2", "{f}/none"], "config.json"),
        (["score", "{f}", "{f}/true"], "names in common"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refusals(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    assert main([*(word.format(f=folders) for word in arguments), "-o", str(tmp_path / "s")]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


class Detector(torch.nn.Module):
    """The signature of the TorchScript file of Inception-v3."""

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert images.dtype == torch.uint8
        assert return_features
        return images.float().mean((2, 3))


@pytest.mark.slow
def test_inception_and_dinov2_of_local_weights(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.jit.script(Detector()).save(str(tmp_path / "net.pt"))
    config = transformers.Dinov2Config(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    torch.manual_seed(0)
    net = transformers.Dinov2Model(config).eval()
    net.save_pretrained(tmp_path / "dino")
    first, second = encoders(tmp_path / "net.pt", tmp_path / "dino", torch.device("cpu"))
    pictures = torch.rand(2, 4, 3, 64, 64)
    assert torch.allclose(first.encode.of_pictures(pictures), (255 * pictures).round().mean((3, 4)), atol=1e-3)
    found = second.encode.of_pictures(pictures)
    assert found.shape == (2, 4, 12)
    assert torch.allclose(found.mean(-1), torch.zeros(2, 4), atol=1e-5)  # after the last norm


def test_gaussians_stand_where_their_mesh_does(tmp_path: Path) -> None:
    write_ply(gaussians(3000), tmp_path / "box.ply")
    trimesh.creation.box((0.5, 0.6, 1)).export(tmp_path / "box.stl")
    seeing = Seeing(2000, 0, False)
    found, truth = (read_object(tmp_path / name, "z", seeing) for name in ("box.ply", "box.stl"))
    assert np.allclose(found["box"], truth["box"], atol=0.02)
    assert math.isnan(found["watertight"])
    values = surface_distances(found["points"].astype(float), truth["points"].astype(float), (0.05,), ("unaligned",))
    assert values["chamfer/unaligned"] < 0.03


def test_a_folder_goes_by_its_name_or_by_a_given_one(tmp_path: Path) -> None:
    (tmp_path / "a=b").mkdir()
    assert list(labelled([f"{tmp_path}/x/", f"mine={tmp_path}/x", f"{tmp_path}/a=b"])) == ["x", "mine", "a=b"]


def test_a_true_object_that_cannot_be_read_is_left_out_and_named(folders: Path, tmp_path: Path) -> None:
    for name in ("ball", "box"):
        (tmp_path / f"{name}.glb").write_bytes((folders / "true" / f"{name}.glb").read_bytes())
    (tmp_path / "rod.glb").write_bytes(b"no mesh")
    plain: dict[str, Any] = {"views": False, "points": 500, "workers": 1, "align": ["unaligned"], "resamples": 100}
    found = score(folders / "good", tmp_path, out=tmp_path / "s", **plain)
    assert [row.name for row in found.objects["good"]] == ["ball", "box"]
    assert any("rod is unreadable" in note for note in found.notes)
    (tmp_path / "box.glb").write_bytes(b"no mesh either")
    with pytest.raises(FewstepError, match="accepted: 2 or more"):
        score(folders / "good", tmp_path, out=tmp_path / "s", **plain)
