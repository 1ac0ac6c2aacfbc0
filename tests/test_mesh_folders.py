"""Folders of mesh files: what is read of each format, and the prepared set that is made of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fewstep_shapes3d.data import SWEETHOME3D, materials, meshfiles, parts, prepare
from fewstep_shapes3d.data.joined import load_sets
from fewstep_shapes3d.data.mesh import Mesh, load_mesh
from fewstep_shapes3d.data.prepared import PreparedSet
from fewstep_shapes3d.data.views import look_up
from fewstep_shapes3d.export.glb import linear, write_glb
from fewstep_shapes3d.representations import Mesh as Made
from PIL import Image

from fewstep.cli import main
from fewstep.errors import FewstepError
from fewstep.files import sha256

trimesh = pytest.importorskip("trimesh")
CENTRE = np.full((1, 2), 1 / 3)  # of a triangle, as the weights of its second and third corner
TRIANGLE = {"vertices": [[0.0, 0, 0], [1, 0, 0], [0, 2, 0]], "faces": [[0, 1, 2]], "process": False}
PBR = trimesh.visual.material.PBRMaterial


def colour(mesh: Mesh, face: int = 0) -> list[float]:
    found: list[float] = look_up(mesh, np.array([face]), CENTRE)[0].tolist()
    return found


def textured(path: Path, **material: object) -> Mesh:
    """A triangle whose centre lies in the upper left of four pixels."""
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[...] = 0, 0, 255, 255
    pixels[0, 0] = 200, 100, 50, 100
    uv = np.array([[0.1, 0.9], [0.3, 0.9], [0.2, 0.6]])
    texture = PBR(baseColorTexture=Image.fromarray(pixels), **material)
    visual = trimesh.visual.TextureVisuals(uv=uv, material=texture)
    trimesh.Trimesh(**TRIANGLE, visual=visual).export(path)
    return load_mesh(path)


def test_a_texture_of_gltf_is_multiplied_by_its_linear_factor(tmp_path: Path) -> None:
    mesh = textured(tmp_path / "a.glb", baseColorFactor=[128, 255, 64, 255])
    # IEC 61966-2-1 of 128/255 and 64/255 of linear light
    factor = np.array([1.055 * (128 / 255) ** (1 / 2.4) - 0.055, 1, 1.055 * (64 / 255) ** (1 / 2.4) - 0.055])
    assert colour(mesh)[:3] == pytest.approx(np.array([200, 100, 50]) / 255 * factor, abs=0.5 / 255)


@pytest.mark.parametrize(
    ("mode", "alpha"),
    [
        ({}, 1),
        ({"alphaMode": "MASK"}, 0),
        ({"alphaMode": "MASK", "alphaCutoff": 0.3}, 1),
        ({"alphaMode": "BLEND"}, 0.392),
    ],
)
def test_alpha_of_gltf_counts_by_its_mode(tmp_path: Path, mode: dict[str, object], alpha: float) -> None:
    assert colour(textured(tmp_path / "a.glb", **mode))[3] == pytest.approx(alpha, abs=0.001)


def test_a_plain_factor_without_a_texture(tmp_path: Path) -> None:
    visual = trimesh.visual.TextureVisuals(material=PBR(baseColorFactor=[55, 0, 255, 128]))
    trimesh.Trimesh(**TRIANGLE, visual=visual).export(tmp_path / "a.gltf")
    assert linear(np.array(colour(load_mesh(tmp_path / "a.gltf")))[:3]) == pytest.approx([55 / 255, 0, 1])


def test_what_write_glb_writes_is_read_back(tmp_path: Path) -> None:
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0.5], [0, 2, 0]])
    shades = torch.tensor([[1.0, 0.5, 0.2], [0.25, 0.5, 0.2], [0.6, 0.5, 0.8]])
    write_glb(Made(vertices, torch.tensor([[0, 1, 2]]), shades), tmp_path / "a.glb")
    mesh = load_mesh(tmp_path / "a.glb")
    assert mesh.vertices == pytest.approx(vertices.numpy())
    assert colour(mesh) == pytest.approx([*shades.mean(0).tolist(), 1], abs=0.01)


def test_srgb_is_the_inverse_of_linear() -> None:
    values = np.linspace(0, 1, 101)
    assert materials.srgb(linear(values)) == pytest.approx(values, abs=1e-6)


@pytest.mark.parametrize("suffix", ["ply", "obj"])
def test_colours_of_vertices_are_blended(tmp_path: Path, suffix: str) -> None:
    shades = np.array([[255, 0, 0], [0, 255, 0], [30, 60, 240]], np.uint8)
    trimesh.Trimesh(**TRIANGLE, vertex_colors=shades).export(tmp_path / f"a.{suffix}")
    assert colour(load_mesh(tmp_path / f"a.{suffix}")) == pytest.approx([*shades.mean(0) / 255, 1], abs=1 / 255)


def test_colours_of_faces_stay_apart(tmp_path: Path) -> None:
    box = trimesh.creation.box()
    box.visual.face_colors = [[20 * k, 0, 0, 255] for k in range(12)]
    box.export(tmp_path / "a.ply")
    mesh = load_mesh(tmp_path / "a.ply")
    assert [round(colour(mesh, face)[0] * 255) for face in range(12)] == [20 * k for k in range(12)]


def test_a_file_without_colours_is_grey_and_its_axes_are_kept(tmp_path: Path) -> None:
    trimesh.Trimesh(**TRIANGLE).export(tmp_path / "a.stl")
    mesh = load_mesh(tmp_path / "a.stl", up="z")
    assert mesh.vertices == pytest.approx(np.array(TRIANGLE["vertices"]))
    assert colour(mesh) == [0.7, 0.7, 0.7, 1]
    turned = load_mesh(tmp_path / "a.stl", up="y")
    assert turned.vertices[2] == pytest.approx([0, 0, 2])


def test_the_parts_of_a_scene_are_put_in_their_places(tmp_path: Path) -> None:
    scene, red = trimesh.Scene(), trimesh.creation.box()
    red.visual.vertex_colors = [255, 0, 0, 255]
    up = trimesh.transformations.translation_matrix([0, 2, 0])
    scene.add_geometry(red, node_name="low", geom_name="box")
    scene.add_geometry(red, node_name="mid", geom_name="box", parent_node_name="low", transform=up)
    scene.add_geometry(trimesh.creation.box(), node_name="top", parent_node_name="mid", transform=up)
    scene.export(tmp_path / "a.glb")
    mesh = load_mesh(tmp_path / "a.glb")
    assert (mesh.vertices.min(0), mesh.vertices.max(0)) == (
        pytest.approx([-0.5, -0.5, -0.5]),
        pytest.approx([0.5, 0.5, 4.5]),
    )
    low = mesh.vertices[mesh.faces].mean(1)[:, 2] < 3
    assert (low.sum(), (~low).sum()) == (24, 12)
    for face, is_red in enumerate(low):
        assert colour(mesh, face)[:3] == pytest.approx([1, 0, 0] if is_red else [0.7] * 3)


def bad_files(folder: Path) -> dict[str, str]:
    """Writes files that cannot be used; the reason for each."""
    folder.mkdir(parents=True)
    (folder / "broken.glb").write_bytes(b"glTF\2\0\0\0 no more than this")
    (folder / "cut.stl").write_bytes(trimesh.creation.box().export(file_type="stl")[:200])
    (folder / "nan.obj").write_text("v 0 0 0\nv 1 0 0\nv nan 1 0\nf 1 2 3\n")
    (folder / "index.off").write_text("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n")
    (folder / "point.obj").write_text("v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n")
    (folder / "cloud.ply").write_bytes(trimesh.PointCloud(np.eye(3)).export(file_type="ply"))
    (folder / "empty.gltf").write_text(json.dumps({"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": []}]}))
    required = {"asset": {"version": "2.0"}, "extensionsRequired": ["KHR_draco_mesh_compression"]}
    (folder / "packed.gltf").write_text(json.dumps(required))
    return {
        "broken.glb": "cannot be read",
        "cut.stl": "has no faces",
        "nan.obj": "coordinates that are not finite",
        "index.off": "cannot be read",
        "point.obj": "all its points coincide",
        "cloud.ply": "has no faces",
        "empty.gltf": "",
        "packed.gltf": "compressed (KHR_draco_mesh_compression)",
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Eight distinct objects in five formats at several depths."""
    folder = tmp_path / "collection"
    boxes = [trimesh.creation.box((1, 0.2 + 0.25 * k, 0.9 - 0.2 * k)) for k in range(4)]
    solids = [trimesh.creation.cone(0.5, 1), trimesh.creation.icosphere(1), trimesh.creation.torus(1, 0.3)]
    solids += [trimesh.creation.cylinder(0.3, 2), *boxes]
    places = [
        "a/cone.stl",
        "a/b/ball.ply",
        "a/b/c/torus.off",
        "tube.GLB",
        "box0.obj",
        "box1.stl",
        "box2.gltf",
        "d/box3.obj",
    ]
    for solid, place in zip(solids, places, strict=True):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        solid.export(folder / place.lower())
        (folder / place.lower()).rename(folder / place)
    return folder


def test_files_are_found_at_any_depth(source: Path) -> None:
    found = meshfiles.find_meshes(source)
    assert [file.model for file in found] == sorted((file.model for file in found), key=lambda m: Path(m).parts)
    assert len(found) == 8
    by_name = {file.name: file for file in found}
    assert (by_name["a/b/c/torus"].category, by_name["box1"].category) == ("a", "Miscellaneous")
    assert {by_name[name].up for name in ("a/cone", "a/b/ball", "a/b/c/torus", "box1")} == {"z"}
    assert {by_name[name].up for name in ("tube", "box0", "box2", "d/box3")} == {"y"}
    assert {file.up for file in meshfiles.find_meshes(source, "y")} == {"y"}
    assert len(meshfiles.find_meshes([source / "a", source / "a" / "b", source / "box0.obj"])) == 4
    (source / "none").mkdir()
    for wrong, says in ((source / "lost", "does not exist"), (source / "none", "holds none")):
        with pytest.raises(FewstepError, match=f"--source: got .*{says}"):
            meshfiles.find_meshes(wrong)
    with pytest.raises(FewstepError, match="unknown up 'Y': accepted are auto, y, z; did you mean 'y'"):
        meshfiles.find_meshes(source, "Y")  # type: ignore[arg-type]


def test_a_folder_becomes_a_prepared_set(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("open3d", exc_type=ImportError)
    reasons = bad_files(source / "bad")
    monkeypatch.setattr(parts, "PART", 7)
    seen: list[int] = []

    def interrupted(done: int, total: int, name: str) -> None:
        seen.append(done)
        if len(seen) == 10:
            raise KeyboardInterrupt

    out = tmp_path / "set"
    settings = {"views": 2, "workers": 1}
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare_meshes(source, out, **settings, progress=interrupted)
    assert not out.exists()
    manifest = prepare.prepare_meshes(source, out, **settings, progress=lambda done, total, name: seen.append(done))
    assert seen == [*range(10), *range(7, 17)], "the first part is kept"
    assert {path.name for path in tmp_path.iterdir()} == {"collection", "set"}, "the parts are gone"

    skipped = {bad["what"]: bad["reason"] for bad in manifest["skipped"]}
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("skipped ")]
    assert len(skipped) == len(lines) == len(reasons)
    for name, reason in reasons.items():
        assert reason in skipped[f"collection: bad/{Path(name).stem} (bad/{name})"]
    data = PreparedSet.load(out)
    assert (len(data), manifest["counts"]["skipped"], manifest["up"]) == (8, 8, "auto")
    assert len(data.test) == 2, "a quarter of the clusters"
    assert not data.arrays["tokens"][data.test, 0, 1].any()
    assert not data.arrays["tokens"][data.test, 1].any()
    assert data.arrays["tokens"][data.train].any((-1, -2)).all()
    assert data.picture(int(data.test[0])).shape == (112, 112, 3)
    rows = {row["name"]: number for number, row in enumerate(data.table)}
    tube = data.occupancy([rows["tube"]])[0, 0].nonzero()
    assert (tube.amax(0) - tube.amin(0)).argmax() == 1, "z of a y-up file is -y of the set"
    assert data.surface(rows["a/b/ball"])[1][:, 8:].mean() == pytest.approx(0.7 * 2 - 1, abs=0.02), "grey"

    whole = tmp_path / "whole"
    assert main(["data", "prepare", "meshes", "--source", str(source), "--out", str(whole), "--workers", "1"]) == 0
    assert "objects 8, clusters 8, skipped 8" in capsys.readouterr().out
    for name in ("objects.csv", "surface.npz", "pictures.png", "CREDITS.md"):
        assert sha256(out / name) == sha256(whole / name)
    both = load_sets([SWEETHOME3D, out])
    assert len(both.test) == 98


def test_a_folder_without_a_usable_mesh_is_one_error(tmp_path: Path) -> None:
    pytest.importorskip("open3d", exc_type=ImportError)
    bad_files(tmp_path / "bad")
    with pytest.raises(FewstepError, match="bad: usable objects: 0; accepted: at least 2"):
        prepare.prepare_meshes(tmp_path / "bad", tmp_path / "set", workers=1)
    with pytest.raises(FewstepError, match="views: got 0; accepted: 1 or more"):
        prepare.prepare_meshes(tmp_path / "bad", tmp_path / "set", views=0)
