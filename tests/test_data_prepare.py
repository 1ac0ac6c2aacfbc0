"""Reading catalogues, preparing a set, loading it, and the set that is shipped."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from fewstep_shapes3d.data import SWEETHOME3D, clusters, sh3f
from fewstep_shapes3d.data.mesh import Mesh, load_mesh, normalise
from fewstep_shapes3d.data.prepared import PreparedSet
from fewstep_shapes3d.data.views import Camera, Renderer, draw_cameras
from fewstep_shapes3d.data.voxels import pack, unpack, voxelise
from fewstep_shapes3d.measures.features import POSITIONS
from PIL import Image

from fewstep.errors import FewstepError, install
from fewstep.files import Unwritable

Box = tuple[float, float, float, float, float, float]
CUBE: list[Box] = [(0, 0, 0, 1, 1, 1)]
# Y up, front towards +z: the back rest is at low z.
CHAIR: list[Box] = [
    (0, 0.4, 0, 1, 0.5, 1),
    (0, 0.5, 0, 1, 1.4, 0.1),
    (0, 0, 0, 0.1, 0.4, 0.1),
    (0.9, 0, 0.9, 1, 0.4, 1),
]
ARROW: list[Box] = [(0, 0, 0, 0.2, 1, 0.2), (0, 0.8, 0, 1, 1, 0.2)]  # an upright with an arm towards +x at its top
MATERIAL = "newmtl red\nKd 0.8 0.1 0.1\nnewmtl glass\nKd 0.5 0.7 0.9\nd 0.3\n"


def obj(boxes: list[Box], scale: float = 1.0, material: str = "red") -> str:
    lines = ["mtllib model.mtl", f"usemtl {material}"]
    for x0, y0, z0, x1, y1, z1 in boxes:
        lines += [f"v {x * scale} {y * scale} {z * scale}" for x in (x0, x1) for y in (y0, y1) for z in (z0, z1)]
    for start in range(1, 8 * len(boxes), 8):
        for face in ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)):
            lines.append("f " + " ".join(str(start + corner) for corner in face))
    return "\n".join(lines) + "\n"


def write_sh3f(path: Path, models: dict[str, str], extra: str = "") -> Path:
    text = "# a comment\nid=test\nlicense=Creative Commons Attribution 3.0 license\n"
    with zipfile.ZipFile(path, "w") as archive:
        for number, (name, content) in enumerate(models.items(), 1):
            text += f"name#{number}={name} 10\\u20ac\nmodel#{number}=/m/{name}/model.obj\n"
            text += f"category#{number}=Test\ncreator#{number}=Ann \xc9\n"
            archive.writestr(f"m/{name}/model.obj", content)
            archive.writestr(f"m/{name}/model.mtl", MATERIAL)
        archive.writestr("PluginFurnitureCatalog.properties", (text + extra).encode("latin-1"))
        archive.writestr("LICENSE.TXT", "give credit")
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "catalogues"
    folder.mkdir()
    rows = [(0, 0, 0, 1, 0.1 * k, 1 - 0.15 * k) for k in range(1, 5)]
    models = {"cube": obj(CUBE), "chair": obj(CHAIR), "twin": obj(CHAIR, 3.0), "arrow": obj(ARROW, material="glass")}
    models |= {f"box{k}": obj([row]) for k, row in enumerate(rows)}
    models |= {"empty": "", "faceless": "v 0 0 0\n", "point": obj([(1, 1, 1, 1, 1, 1)]), "noise": "\x00\xff nothing"}
    write_sh3f(folder / "a.sh3f", models, "name#99=lost\nmodel#99=/m/lost.obj\n")
    (folder / "b.sh3f").write_bytes((folder / "a.sh3f").read_bytes()[:2000])
    with zipfile.ZipFile(folder / "c.sh3f", "w") as archive:
        archive.writestr("other.txt", "no catalogue")
    return folder


def mesh_of(tmp_path: Path, boxes: list[Box], rotation: tuple[float, ...] | None = None) -> Mesh:
    pytest.importorskip("trimesh")
    (tmp_path / "model.obj").write_text(obj(boxes))
    (tmp_path / "model.mtl").write_text(MATERIAL)
    return normalise(load_mesh(tmp_path / "model.obj", rotation))


def test_catalogues_are_read_and_damage_is_reported(source: Path) -> None:
    entries, skipped = sh3f.read_catalogues(sh3f.find_catalogues(source))
    assert len(entries) == 12
    assert entries[0].name == "cube 10€"
    assert (entries[0].creator, entries[0].licence, entries[0].category) == ("Ann É", "CC-BY 3.0", "Test")
    reasons = {bad.what: bad.reason for bad in skipped}
    assert "holds no m/lost.obj" in reasons["a.sh3f#99 (lost)"]
    assert "cannot be read" in reasons["b.sh3f"]
    assert "no PluginFurnitureCatalog.properties" in reasons["c.sh3f"]


def test_bad_rotations_and_nameless_models_are_skipped(tmp_path: Path) -> None:
    extra = "modelRotation#1=1 0 0\nmodel#2=/m/cube/model.obj\n"
    extra += "name#3=three\nmodel#3=/m/cube/model.obj\nmodelRotation#3=a b\n"
    path = write_sh3f(tmp_path / "a.sh3f", {"cube": obj(CUBE)}, extra)
    entries, skipped = sh3f.read_catalogues([path])
    assert not entries
    assert [bad.reason.split()[0] for bad in skipped] == ["modelRotation", "the", "modelRotation"]


@pytest.mark.parametrize("make", [lambda p: p, lambda p: p / "missing", lambda p: [p]])
def test_a_source_without_catalogues_is_one_error(tmp_path: Path, make: object) -> None:
    with pytest.raises(FewstepError, match=r"--source.*\.sh3f"):
        sh3f.find_catalogues(make(tmp_path))  # type: ignore[operator]


def test_a_model_outside_its_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.sh3f"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../x.obj", obj(CUBE))
        archive.writestr("PluginFurnitureCatalog.properties", "name#1=x\nmodel#1=/../x.obj\n")
    entries, skipped = sh3f.read_catalogues([path])
    assert not entries
    assert len(skipped) == 1


def test_what_lies_outside_the_window_of_a_view_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("open3d", exc_type=ImportError)
    renderer = Renderer(mesh_of(tmp_path, CHAIR))
    views = [(Camera(40, 20), None), (Camera(-70, 80), 1.3), (Camera(160, -30), 3.0), (Camera(10, 5), 0.3)]
    found = [renderer.render(camera, 48, 2, distance) for camera, distance in views]
    whole = np.array([0, 48])
    monkeypatch.setattr(renderer, "_window", lambda *arguments: (whole, whole))
    for (camera, distance), picture in zip(views, found, strict=True):
        assert (renderer.render(camera, 48, 2, distance) == picture).all()
    assert found[2][..., 3].any()


def test_axes_and_scale(tmp_path: Path) -> None:
    mesh = mesh_of(tmp_path, CHAIR)
    assert np.allclose(mesh.vertices.min(0), -mesh.vertices.max(0))
    assert np.ptp(mesh.vertices, axis=0) == pytest.approx([1 / 1.4, 1 / 1.4, 1])
    back = mesh.vertices[mesh.vertices[:, 2] > 0.45]
    assert (back[:, 1] > 0.2).all(), "the back rest is away from the front, which looks towards -y"


def test_rotation_applies_before_the_axes_turn(tmp_path: Path) -> None:
    turned = mesh_of(tmp_path, ARROW, (0, -1, 0, 1, 0, 0, 0, 0, 1))  # x to y, y to -x
    straight = mesh_of(tmp_path, ARROW)
    expected = np.stack([-straight.vertices[:, 2], straight.vertices[:, 1], straight.vertices[:, 0]], 1)
    assert np.allclose(turned.vertices, expected)


def test_voxels_of_a_cube_are_its_shell(tmp_path: Path) -> None:
    pytest.importorskip("open3d", exc_type=ImportError)
    grid = voxelise(mesh_of(tmp_path, CUBE), 16)
    shell = np.ones((16, 16, 16), dtype=bool)
    shell[1:-1, 1:-1, 1:-1] = False
    assert (grid == shell).all()
    assert (unpack(pack(grid), 16) == grid).all()


def test_pictures_are_upright_and_flip_with_the_object(tmp_path: Path) -> None:
    pytest.importorskip("open3d", exc_type=ImportError)
    mesh = mesh_of(tmp_path, ARROW)
    camera = draw_cameras("key", 1)[0]
    assert camera == draw_cameras("key", 2)[0] != draw_cameras("key", 1, seed=1)[0]
    front = Renderer(mesh).render(type(camera)(0.0, 10.0), 64)
    rows, columns = np.nonzero(front[..., 3] > 128)
    assert np.median(columns[rows < np.median(rows)]) > np.median(columns[rows > np.median(rows)]), "arm: top right"
    assert front[..., 0][front[..., 3] == 255].mean() > 2 * front[..., 2][front[..., 3] == 255].mean(), "red"
    mirrored = Mesh(mesh.vertices * [-1, 1, 1], mesh.faces, mesh.uv, mesh.material, mesh.materials)
    picture = Renderer(mesh).render(camera, 64)
    flipped = Renderer(mirrored).render(type(camera)(-camera.azimuth, camera.elevation), 64)[:, ::-1]
    assert np.abs(picture.astype(int) - flipped).mean() < 0.5


def test_textures_are_the_right_way_up(tmp_path: Path) -> None:
    pytest.importorskip("open3d", exc_type=ImportError)
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0, 0], pixels[0, 1], pixels[1, 0], pixels[1, 1] = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
    Image.fromarray(pixels).save(tmp_path / "t.png")
    (tmp_path / "model.mtl").write_text("newmtl t\nKd 1 1 1\nmap_Kd t.png\n")
    corners = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\nf 1/1 2/2 3/3 4/4\n"
    (tmp_path / "model.obj").write_text(f"mtllib model.mtl\nusemtl t\n{corners}")
    picture = Renderer(normalise(load_mesh(tmp_path / "model.obj"))).render(Camera(0, 0), 32)
    for row, column in np.ndindex(2, 2):
        seen = picture[8 + 16 * row, 8 + 16 * column, :3].astype(int)
        assert np.abs(seen - (0.12 + 0.88 * pixels[row, column] / 255.0) * 255).max() < 12


def test_glass_lets_the_inside_through(tmp_path: Path) -> None:
    pytest.importorskip("open3d", exc_type=ImportError)
    text = obj([(0.4, 0.4, 0.4, 0.6, 0.6, 0.6)]) + obj(CUBE, material="glass").split("\n", 1)[1].replace("f ", "f  ")
    lines = text.splitlines()
    for at in range(len(lines)):
        if lines[at].startswith("f  "):
            lines[at] = "f " + " ".join(str(int(part) + 8) for part in lines[at][3:].split())
    (tmp_path / "model.obj").write_text("\n".join(lines))
    (tmp_path / "model.mtl").write_text(MATERIAL)
    picture = Renderer(normalise(load_mesh(tmp_path / "model.obj"))).render(Camera(0, 0), 64).astype(int)
    middle, side = picture[32, 32], picture[32, 12]
    assert middle[3] == side[3] == 255, "glass is part of the outline"
    assert middle[0] > middle[2], "the red box behind the glass"
    assert side[2] > side[0], "the glass alone"


def test_a_damaged_texture_costs_only_the_texture(tmp_path: Path) -> None:
    (tmp_path / "t.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    pytest.importorskip("trimesh")
    (tmp_path / "model.mtl").write_text("newmtl red\nKd 0.8 0.1 0.1\nd -halo 0.5\nmap_Kd t.png\n")
    (tmp_path / "model.obj").write_text(obj(CUBE))
    mesh = load_mesh(tmp_path / "model.obj")
    assert mesh.materials[0].texture is None
    assert mesh.materials[0].colour[3] == 0.5


def test_prepare_makes_a_whole_set_and_names_what_it_skips(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("open3d", exc_type=ImportError)
    from fewstep_shapes3d.data.prepare import prepare_sweethome3d

    calls: list[int] = []
    out = tmp_path / "deep" / "set"
    manifest = prepare_sweethome3d(
        source,
        out,
        resolution=16,
        channels=8,
        test_clusters=2,
        workers=2,
        progress=lambda done, total, name: calls.append(done),
    )
    assert calls[:13] == list(range(13))
    assert calls[13:] == list(range(1, manifest["counts"]["train"] + 1))
    assert manifest["counts"]["objects"] == 8
    unusable = {bad["what"].split("(m/")[1].split("/")[0] for bad in manifest["skipped"] if "(m/" in bad["what"]}
    assert unusable == {"empty", "faceless", "point", "noise"}
    assert capsys.readouterr().out.count("skipped ") == len(manifest["skipped"]) == 7
    assert [path.name for path in out.parent.iterdir()] == ["set"], "no temporary folder stays"
    data = PreparedSet.load(out)
    assert data.occupancy(data.train).shape == (len(data.train), 1, 16, 16, 16)
    assert data.tokens(data.train, 1, flip=True).square().mean().sqrt() == pytest.approx(1, abs=0.2)
    assert data.picture(int(data.test[0])).shape == (112, 112, 3)
    labels = {row["name"]: row["cluster"] for row in data.table}
    assert labels["chair 10€"] == labels["twin 10€"], "the same chair at another scale is a duplicate"
    assert "Ann É" in (out / "CREDITS.md").read_text(encoding="utf-8")
    with pytest.raises(FewstepError, match="nothing is overwritten"):
        prepare_sweethome3d(source, out)
    with pytest.raises(FewstepError, match=r"indices.*view 0 flipped"):
        data.tokens(data.test, 0, flip=True)
    with pytest.raises(FewstepError, match="view: got 2; accepted: 0 to 1"):
        data.tokens(data.train, 2)


def test_a_failing_write_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("open3d", exc_type=ImportError)
    from fewstep_shapes3d.data import prepare, setfiles

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(setfiles, "write_credits", full)
    with pytest.raises(Unwritable, match="set: cannot be written: no space"):
        prepare.prepare_sweethome3d(
            source, tmp_path / "out" / "set", resolution=8, channels=8, test_clusters=1, workers=1
        )
    assert not (tmp_path / "out").exists()


def test_clusters_follow_chains_and_mirror_images() -> None:
    grids = np.zeros((5, 8, 8, 8), dtype=bool)
    grids[0, :3, 0, 0] = grids[1, 5:, 0, 0] = True  # mirror images
    grids[2, :8, 4, 4], grids[3, :7, 4, 4], grids[4, :5, 4, 4] = True, True, True  # 7/8, 5/7, but 5/8 only
    assert clusters.cluster(grids).tolist() == [0, 0, 1, 1, 1]
    fine = grids.repeat(8, 1).repeat(8, 2).repeat(8, 3)
    assert (clusters.coarsen(fine, 8) == grids).all()
    assert clusters.coarsen(grids) is grids


def test_split_keeps_test_clusters_out_of_training() -> None:
    labels, counts = np.arange(60) // 2, np.full(60, 500)
    counts[::2] = 10  # specks never test
    codes = clusters.split(labels, counts, 5, seed=3)
    test = np.flatnonzero(codes == clusters.TEST)
    assert len(test) == 5
    assert (counts[test] == 500).all()
    assert not set(labels[test]) & set(labels[codes == clusters.TRAIN])
    assert (codes == clusters.LEFT_OUT).sum() == 5
    assert (codes == clusters.split(labels, counts, 5, seed=3)).all()
    with pytest.raises(FewstepError, match="test_clusters: got 30"):
        clusters.split(labels, counts, 30)


@pytest.mark.parametrize(("objects", "test"), [(2, 1), (3, 2), (4, 2), (7, 2), (12, 3)])
def test_of_a_few_objects_two_are_held_out(objects: int, test: int) -> None:
    codes = clusters.split(np.arange(objects), np.full(objects, 500), 96, fewer=True)
    assert (codes == clusters.TEST).sum() == test
    assert (codes == clusters.TRAIN).sum() == objects - test


@pytest.fixture(scope="module")
def shipped() -> PreparedSet:
    return PreparedSet.load()


def test_the_shipped_set_has_no_leak(shipped: PreparedSet) -> None:
    test = shipped.occupancy(shipped.test)[:, 0].numpy() > 0
    train = shipped.occupancy(shipped.train)[:, 0].numpy() > 0
    assert len(test) >= 96
    assert len(train) >= 600
    for other in (train, clusters.mirror(train)):
        assert clusters.overlap(test, other).max() <= clusters.THRESHOLD
    among = np.maximum(clusters.overlap(test, test), clusters.overlap(test, clusters.mirror(test)))
    np.fill_diagonal(among, 0)
    assert among.max() <= clusters.THRESHOLD


def test_the_shipped_set_is_normalised_small_and_credited(shipped: PreparedSet) -> None:
    every = [shipped.tokens(shipped.train, view, flip) for view in range(shipped.views) for flip in (False, True)]
    stored = torch.stack(every)[..., :-POSITIONS]
    assert stored.square().mean().sqrt() == pytest.approx(1, abs=0.01)
    assert stored.mean((0, 1, 2)).abs().max() < 0.02
    assert shipped.tokens(shipped.test).isfinite().all()
    assert sum(path.stat().st_size for path in SWEETHOME3D.iterdir()) <= 9e6
    credits = (SWEETHOME3D / "CREDITS.md").read_text(encoding="utf-8")
    assert all(row["creator"] in credits and row["name"] in credits for row in shipped.table)
    assert {row["licence"] for row in shipped.table} == {"CC0 1.0", "CC-BY 3.0", "CC-BY 3.0 US"}
    assert [int(row["voxels"]) for row in shipped.table] == shipped.occupancy(range(len(shipped))).sum(
        (1, 2, 3, 4)
    ).tolist()


def test_flipped_grids_mirror_x(shipped: PreparedSet) -> None:
    index = shipped.train[:3]
    assert torch.equal(shipped.occupancy(index, flip=True), shipped.occupancy(index).flip(2))


def test_the_shipped_files_are_those_of_the_manifest(shipped: PreparedSet) -> None:
    for name, facts in shipped.manifest["files"].items():
        content = (SWEETHOME3D / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (facts["bytes"], facts["sha256"])


def test_loading_needs_neither_open3d_nor_trimesh_and_preparing_says_so(tmp_path: Path) -> None:
    script = f"""
import sys
sys.modules["open3d"] = sys.modules["trimesh"] = None
from fewstep.errors import FewstepError
from fewstep_shapes3d.data.prepared import PreparedSet
from fewstep_shapes3d.data.prepare import prepare_sweethome3d
PreparedSet.load()
try:
    prepare_sweethome3d({str(tmp_path)!r}, {str(tmp_path / "out")!r})
except FewstepError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert install("data") in done.stdout


def test_the_structure_flow_and_its_data_set_need_no_extra() -> None:
    script = """
import sys
from fewstep.errors import EXTRAS
for package in (package for packages in EXTRAS.values() for package in packages):
    sys.modules[package] = None
import fewstep_trellis.plugin
from fewstep_shapes3d.data.prepared import PreparedSet
from fewstep_trellis.backbone import StructureFlow
from fewstep_trellis.dataset import PreparedObjects
print(len(PreparedSet.load()), StructureFlow.Config(), PreparedObjects)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def drop(name: str) -> object:
    return lambda folder: (folder / name).unlink()


def cut(name: str) -> object:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-3000])


def edit(key: str, value: object) -> object:
    def change(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | {key: value}))

    return change


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (drop("manifest.json"), r"has no manifest\.json"),
        (lambda folder: (folder / "manifest.json").write_text("{"), r"manifest\.json cannot be used"),
        (edit("format", "other"), r"does not describe a fewstep-prepared-set"),
        (edit("version", 99), r"version 99"),
        (edit("channels", 7), r"objects\.npz cannot be used: tokens should have shape"),
        (edit("counts", {}), r"manifest\.json cannot be used: it gives no 'objects'"),
        (drop("objects.npz"), r"objects\.npz cannot be used: it is missing"),
        (cut("objects.npz"), r"objects\.npz cannot be used: damaged or cut short"),
        (drop("objects.csv"), r"objects\.csv cannot be used"),
        (cut("objects.csv"), r"objects\.csv cannot be used: it has \d+ rows"),
        (lambda folder: [path.unlink() for path in folder.iterdir()], r"has no manifest\.json"),
        (shutil.rmtree, r"there is no folder"),
    ],
)
def test_a_damaged_set_is_a_clear_error(tmp_path: Path, damage: object, says: str) -> None:
    folder = tmp_path / "set"
    shutil.copytree(SWEETHOME3D, folder)
    damage(folder)  # type: ignore[operator]
    with pytest.raises(FewstepError, match=says) as caught:
        PreparedSet.load(folder)
    assert str(folder) in str(caught.value)
    assert "fewstep data prepare meshes --source DIR --out DIR" in str(caught.value)


@pytest.mark.parametrize("damage", [drop("pictures.png"), cut("pictures.png")])
def test_damaged_pictures_and_objects_without_one(tmp_path: Path, shipped: PreparedSet, damage: object) -> None:
    folder = tmp_path / "set"
    shutil.copytree(SWEETHOME3D, folder)
    damage(folder)  # type: ignore[operator]
    with pytest.raises(FewstepError, match=r"pictures\.png cannot be used"):
        PreparedSet.load(folder).picture(int(shipped.test[-1]))
    with pytest.raises(FewstepError, match="a held-out object"):
        shipped.picture(int(shipped.train[0]))
