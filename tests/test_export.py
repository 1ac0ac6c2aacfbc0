"""Files and previews: what other programs read in them, and pictures against closed forms."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from fewstep_shapes3d.export import (
    Camera,
    read_ply,
    render_gaussians,
    render_mesh,
    turntable,
    write_glb,
    write_npz,
    write_ply,
    write_preview,
)
from fewstep_shapes3d.export.glb import linear
from fewstep_shapes3d.export.splat import SH_DC, covariance
from fewstep_shapes3d.representations import Gaussians, Mesh
from PIL import Image
from plyfile import PlyData
from torch import Tensor

from fewstep.errors import FewstepError


def box(half: float = 0.3, colour: tuple[float, float, float] = (1.0, 0.5, 0.0)) -> Mesh:
    """A cube of side 2 ``half``, of one colour."""
    shape = trimesh.creation.box((2 * half,) * 3)
    vertices = torch.tensor(np.asarray(shape.vertices), dtype=torch.float32)
    attrs = torch.cat([torch.tensor(colour).expand(len(vertices), 3), torch.zeros(len(vertices), 3)], 1)
    return Mesh(vertices, torch.tensor(np.asarray(shape.faces)), attrs)


def broken() -> Mesh:
    mesh = box()
    mesh.vertices[3, 1] = torch.nan
    return mesh


def gaussians(count: int = 5, seed: int = 0) -> Gaussians:
    draw = torch.Generator().manual_seed(seed)
    shapes = ((count, 3), (count, 1, 3), (count, 3), (count, 4), (count, 1))
    return Gaussians(*(torch.rand(shape, generator=draw) for shape in shapes), minimum_kernel_size=0.0009)


def test_a_glb_as_other_programs_see_it(tmp_path: Path) -> None:
    mesh = box()
    mesh.vertices[:, 2] *= 0.5
    path = write_glb(mesh, tmp_path / "new" / "box.glb")
    (found,) = trimesh.load(path).geometry.values()
    assert found.is_watertight
    assert found.extents == pytest.approx([0.6, 0.3, 0.6], abs=1e-6)  # y is up
    content = path.read_bytes()
    length = int.from_bytes(content[12:16], "little")
    tree = json.loads(content[20 : 20 + length])
    (primitive,) = tree["meshes"][0]["primitives"]
    assert {"POSITION", "NORMAL", "COLOR_0"} <= primitive["attributes"].keys()
    assert tree["materials"][primitive["material"]]["pbrMetallicRoughness"]["metallicFactor"] == 0
    colours = found.visual.vertex_attributes["color"]
    assert colours[:, :3] == pytest.approx(np.tile([255, round(255 * ((0.5 + 0.055) / 1.055) ** 2.4), 0], (8, 1)))


def test_linear_light() -> None:
    assert linear(np.array([0.0, 0.04045, 0.5, 1.0])) == pytest.approx([0, 0.0031308, 0.2140411, 1], abs=1e-6)


@pytest.mark.parametrize("turn", [True, False])
def test_a_ply_there_and_back(tmp_path: Path, turn: bool) -> None:
    made = gaussians()
    back = read_ply(write_ply(made, tmp_path / "a.ply", turn=turn), turn=turn, minimum_kernel_size=0.0009)
    for name in ("xyz", "scaling", "opacity", "features_dc"):
        assert torch.allclose(getattr(back, name), getattr(made, name), atol=1e-6), name
    assert torch.allclose((back.rotation * made.rotation).sum(1).abs(), torch.ones(5), atol=1e-6)


def test_the_turn_moves_ellipsoids_as_it_moves_points(tmp_path: Path) -> None:
    """The covariance R S S' R' of the turned file is T times that of the plain one times T'."""
    made = gaussians()
    one = read_ply(write_ply(made, tmp_path / "a.ply", turn=True), turn=False)
    turn = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    assert torch.allclose(one.xyz, made.xyz @ turn.T, atol=1e-6)
    assert torch.allclose(spread(one), turn @ spread(made) @ turn.T, atol=1e-7)


def spread(made: Gaussians) -> Tensor:
    """[N, 3, 3] covariances through scipy's own quaternions."""
    from scipy.spatial.transform import Rotation

    turns = torch.tensor(Rotation.from_quat(made.rotation.numpy()[:, [1, 2, 3, 0]]).as_matrix(), dtype=torch.float32)
    axes = turns * made.scaling[:, None]
    return axes @ axes.mT


def test_a_saturated_opacity_is_finite(tmp_path: Path) -> None:
    made = gaussians(2)
    made.raw_opacity[:] = 40.0
    assert (made.opacity == 1).all()
    values = PlyData.read(str(write_ply(made, tmp_path / "a.ply")))["vertex"]["opacity"]
    assert values == pytest.approx([40 + math.log(0.1 / 0.9)] * 2)


def test_arrays(tmp_path: Path) -> None:
    path = write_npz({"a": torch.arange(3), "b": None}, tmp_path / "a.npz")
    with np.load(path) as found:
        assert list(found) == ["a"]
        assert found["a"].tolist() == [0, 1, 2]


def test_a_box_covers_its_silhouette() -> None:
    """From azimuth 0 and elevation 0 a cube is a square of its own colour."""
    camera = Camera(0.0, elevation=0.0, size=100)
    picture = render_mesh(box(0.25), camera)
    covered = (picture < 1).any(-1)
    side = 2 * 0.25 * camera.scale
    assert int(covered.sum()) == pytest.approx(side**2, rel=0.06)
    rows, columns = covered.nonzero(as_tuple=True)
    assert rows.float().mean() == pytest.approx(49.5, abs=1)
    assert columns.float().mean() == pytest.approx(49.5, abs=1)
    shade = picture[covered]
    assert torch.allclose(shade[:, 1] / shade[:, 0], torch.tensor(0.5), atol=1e-3)


def test_the_nearer_thing_is_seen() -> None:
    """Azimuth 0 looks from -y: of two squares the one at -y hides the other, whatever their order."""
    square = torch.tensor([[-0.3, 0, -0.3], [0.3, 0, -0.3], [0.3, 0, 0.3], [-0.3, 0, 0.3]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    front, back = square + torch.tensor([0, -0.2, 0]), square + torch.tensor([0, 0.2, 0])
    red, blue = torch.eye(6)[0].expand(4, 6), torch.eye(6)[2].expand(4, 6)
    for order in (((front, red), (back, blue)), ((back, blue), (front, red))):
        vertices, attrs = (torch.cat([part[i] for part in order]) for i in range(2))
        picture = render_mesh(Mesh(vertices, torch.cat([faces, faces + 4]), attrs), Camera(0.0, 0.0, 64))
        assert picture[32, 32, 0] > 0.2
        assert picture[32, 32, 2] == 0


def test_one_gaussian_against_the_formula() -> None:
    """Alpha at a pixel is the opacity times the projected density, composed on white."""
    made = Gaussians(
        torch.full((1, 3), 0.5),
        torch.tensor([[[1.0, -0.5, 0.2]]]),
        torch.tensor([[0.5, 1.0, 0.8]]),
        torch.tensor([[0.3, 0.2, -0.1, 0.4]]),
        torch.tensor([[1.0]]),
        scaling_bias=0.05,
    )
    camera = Camera(20.0, size=65)
    inverse = torch.linalg.inv(covariance(made, camera))[0]
    away = torch.tensor([3.0, -2.0])
    alpha = made.opacity[0, 0] * torch.exp(-0.5 * away @ inverse @ away)
    colour = torch.tensor([1.0, -0.5, 0.2]) * SH_DC + 0.5
    expected = alpha * colour + (1 - alpha)
    assert torch.allclose(render_gaussians(made, camera)[32 - 2, 32 + 3], expected, atol=1e-5)


def test_gaussians_hide_each_other_front_to_back() -> None:
    """Two opaque ones on the line of sight: the nearer one's colour, in either order."""
    for order in ([0, 1], [1, 0]):
        made = Gaussians(
            torch.tensor([[0.5, 0.2, 0.5], [0.5, 0.8, 0.5]])[order],
            torch.tensor([[[2.0, -2, -2]], [[-2, -2, 2.0]]])[order],
            torch.zeros(2, 3),
            torch.zeros(2, 4),
            torch.full((2, 1), 8.0),
            scaling_bias=0.1,
        )
        middle = render_gaussians(made, Camera(0.0, 0.0, 65))[32, 32]
        assert middle[0] > 0.97
        assert middle[2] < 0.03


def test_nothing_gives_white() -> None:
    empty = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64))
    assert (render_mesh(empty, Camera(0.0, size=8)) == 1).all()
    assert (render_gaussians(gaussians(0), Camera(0.0, size=8)) == 1).all()


def test_a_sheet_of_views(tmp_path: Path) -> None:
    views = turntable(box(), views=3, size=32)
    with Image.open(write_preview([("box", views)], tmp_path / "a.png", 32)) as sheet:
        assert sheet.width > 3 * 32
    assert not np.array_equal(views[0], views[1])


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda folder: write_glb(box(), folder / "a.obj"), r"ending in \.glb"),
        (lambda folder: write_ply(gaussians(), folder / "a.glb"), r"ending in \.ply"),
        (lambda folder: write_glb(Mesh(torch.zeros(1, 3), torch.zeros(0, 3).long()), folder / "a.glb"), "no faces"),
        (lambda folder: write_glb(broken(), folder / "a.glb"), "1 of 8 points are not finite"),
        (lambda folder: write_ply(gaussians(0), folder / "a.ply"), "no Gaussians"),
        (
            lambda folder: write_ply(replace(gaussians(), raw_xyz=torch.full((5, 3), torch.nan)), folder / "a.ply"),
            "5 of 5",
        ),
        (lambda folder: write_glb(box(), folder / "file" / "a.glb"), "cannot be written"),
        (lambda folder: read_ply(folder / "none.ply"), "exists"),
        (lambda folder: read_ply(folder / "file"), "3DGS"),
    ],
)
def test_what_is_refused(tmp_path: Path, write: object, words: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FewstepError, match=words):
        write(tmp_path)  # type: ignore[operator]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
