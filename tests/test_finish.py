"""Finished meshes: repair, simplification and textures against closed forms."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from fewstep_shapes3d.export import render_mesh, write_glb
from fewstep_shapes3d.export.camera import Camera
from fewstep_shapes3d.export.glb import read_tree
from fewstep_shapes3d.export.raster import visible
from fewstep_shapes3d.finish import Finish
from fewstep_shapes3d.finish.finish import finished
from fewstep_shapes3d.finish.holes import fill_holes
from fewstep_shapes3d.finish.nearest import Surface
from fewstep_shapes3d.finish.paint import paint_of
from fewstep_shapes3d.finish.repair import distinct, outward, repaired
from fewstep_shapes3d.mesh import extract_mesh
from fewstep_shapes3d.mesh.faces import watertight
from fewstep_shapes3d.representations import Gaussians, Mesh
from fewstep_shapes3d.result import Result
from fewstep_trellis.generate import command
from fewstep_trellis.generate.api import Options
from fewstep_trellis.generate.models import models_of
from PIL import Image
from rich.console import Console
from test_mesh import cubes, features
from torch import Tensor

from fewstep.errors import FewstepError

R, SIZE = 0.4, 256


def field(points: Tensor) -> Tensor:
    """[P, 3] colours in [0, 1] whose slopes are at most 1 along each axis."""
    return points + 0.5


def of(shape: trimesh.Trimesh) -> Mesh:
    vertices = torch.tensor(np.asarray(shape.vertices), dtype=torch.float32)
    return Mesh(vertices, torch.tensor(np.asarray(shape.faces)), field(vertices))


def sphere(subdivisions: int = 4) -> Mesh:
    return of(trimesh.creation.icosphere(subdivisions, R))


def solid(mesh: Mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices.double().numpy(), mesh.faces.numpy(), process=False)


def open_sphere(below: float) -> Mesh:
    """Without the faces whose middle is above this height."""
    mesh = sphere()
    return mesh.of_faces(mesh.faces[mesh.vertices[mesh.faces].mean(1)[:, 2] < below])


# What is repaired.
def test_a_missing_cap_is_filled_where_it_is_small() -> None:
    mesh = open_sphere(0.99 * R)
    assert not watertight(mesh.faces.numpy())
    edge = 2 * math.pi * R * math.sqrt(1 - 0.99**2)
    assert len(fill_holes(mesh, 0.7 * edge).faces) == len(mesh.faces), "longer than the bound"
    closed = fill_holes(mesh, 1.5 * edge)
    assert watertight(closed.faces.numpy())
    assert solid(closed).is_winding_consistent
    missing = math.pi * (0.01 * R) ** 2 * (R - 0.01 * R / 3)  # of the ball, above the plane of the edge
    assert solid(closed).volume == pytest.approx(solid(sphere()).volume - missing, abs=missing)
    assert closed.vertex_attrs is not None
    assert torch.allclose(closed.vertex_attrs[-1], field(closed.vertices[-1]), atol=1e-6)


def test_holes_that_meet_in_a_vertex_are_filled_one_by_one() -> None:
    mesh = sphere(2)
    star = (mesh.faces == 0).any(1).nonzero()[:, 0]
    mesh = mesh.of_faces(mesh.faces[~torch.isin(torch.arange(len(mesh.faces)), star[[0, len(star) // 2]])])
    closed = fill_holes(mesh, 2.0)
    assert watertight(closed.faces.numpy())
    assert solid(closed).volume == pytest.approx(solid(sphere(2)).volume, rel=1e-6)


@pytest.mark.parametrize("below", [1.0, 0.5])
def test_faces_are_turned_outward(below: float) -> None:
    mesh = open_sphere(below * R)
    turned = torch.rand(len(mesh.faces), generator=torch.Generator().manual_seed(0)) < 0.6
    mixed = torch.where(turned[:, None], mesh.faces.flip(1), mesh.faces).numpy()
    found = outward(mesh.vertices.double().numpy(), mixed)
    normals = Mesh(mesh.vertices, torch.tensor(found)).face_normals[:, 0]
    assert ((normals * mesh.vertices[mesh.faces].mean(1)).sum(1) > 0).all()


def test_duplicate_and_degenerate_faces_go() -> None:
    mesh = sphere(2)
    count = len(mesh.vertices)
    again, back = mesh.faces[:3].roll(1, 1), torch.tensor([[7, 90, 33], [7, 33, 90]])
    twin = mesh.faces[5].clone()
    twin[0] = count  # at the place of another vertex
    lost = mesh.faces.clone()
    lost[5] = twin
    faces = torch.cat([lost, again, back, torch.tensor([[4, 4, 9], [int(mesh.faces[5, 0]), count, 1]])])
    attrs = mesh.vertex_attrs
    assert attrs is not None
    extra = [torch.cat([x, x[mesh.faces[5, :1]]]) for x in (mesh.vertices, attrs)]
    found = distinct(Mesh(extra[0], faces, extra[1]))
    assert len(found.faces) == len(mesh.faces)
    assert len(found.vertices) == count
    assert watertight(found.faces.numpy())
    assert solid(found).volume == pytest.approx(solid(mesh).volume, rel=1e-6)


def test_a_wall_within_goes() -> None:
    outer, inner = sphere(3), sphere(2)
    faces = torch.cat([outer.faces, inner.faces.flip(1) + len(outer.vertices)])
    both = Mesh(torch.cat([outer.vertices, 0.5 * inner.vertices]), faces)
    assert len(repaired(both).faces) == len(outer.faces)


# What is simplified.
def test_a_simplified_box_is_the_box() -> None:
    shape = trimesh.creation.box((0.8, 0.6, 0.5)).subdivide_to_size(0.03)
    shape.merge_vertices()
    found = finished(of(shape), Finish(simplify=0.95))
    assert len(found.faces) <= 0.051 * len(shape.faces)
    assert watertight(found.faces.numpy())
    assert solid(found).volume == pytest.approx(0.24, rel=1e-3)
    assert solid(found).extents == pytest.approx([0.8, 0.6, 0.5], rel=1e-3)
    assert found.colours is not None
    assert torch.allclose(found.colours, field(found.vertices), atol=2e-3), "colours of the places that are left"


def test_of_a_few_faces_none_is_lost() -> None:
    """A fragment that simplification would leave nothing of, and one that the repair leaves nothing of."""
    fragment = of(trimesh.Trimesh([[0, 0, 0], [0.1, 0, 0], [0, 0.1, 0]], [[0, 1, 2]]))
    for faces in ([[0, 1, 2]], [[0, 1, 2], [2, 1, 0]]):
        made = finished(fragment.of_faces(torch.tensor(faces)), Finish(simplify=0.9, texture=64))
        assert len(made.faces) == len(faces)


def test_a_simplified_sphere_stays_closed() -> None:
    found = finished(sphere(), Finish(simplify=0.9))
    assert len(found.faces) == pytest.approx(512, abs=4)
    assert watertight(found.faces.numpy())
    assert solid(found).volume == pytest.approx(4 / 3 * math.pi * R**3, rel=0.02)


def test_nearest_places_on_a_sphere() -> None:
    """By the index of faces, against all faces one by one; beyond edges the nearest place is met but nearly."""
    mesh = sphere(3)
    points = torch.nn.functional.normalize(torch.randn(200, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    places, values = Surface(mesh, field(mesh.vertices))(points * 0.5)
    _, away, _ = trimesh.proximity.closest_point_naive(solid(mesh), (0.5 * points).double().numpy())
    assert (places - 0.5 * points).norm(dim=1).numpy() == pytest.approx(away, abs=1e-4)
    assert torch.allclose(values, field(places), atol=1e-6)


# What is textured.
@pytest.fixture(scope="module")
def painted() -> Mesh:
    return finished(sphere(), Finish(simplify=0.8, texture=SIZE))


def places(mesh: Mesh, count: int = 4000) -> tuple[Tensor, Tensor, Tensor]:
    """Faces [P], weights [P, 3] and places [P, 3] uniform over the faces."""
    draw = np.random.default_rng(0)
    face = torch.from_numpy(draw.integers(0, len(mesh.faces), count))
    weights = torch.from_numpy(draw.dirichlet((1, 1, 1), count)).float()
    return face, weights, (mesh.vertices[mesh.faces[face]] * weights[..., None]).sum(1)


def test_a_texture_repeats_a_known_colour_of_places(painted: Mesh) -> None:
    """Within the colour's change over the distance of two texels, the sphere's arcs over its chords, and rounding."""
    assert painted.texture is not None
    face, weights, points = places(painted)
    texture, corners = painted.texture, painted.vertices[painted.faces]
    sides = (corners - corners.roll(1, 1)).norm(dim=2)
    flat = texture.uv[texture.corners]
    texel = float((sides / ((flat - flat.roll(1, 1)).norm(dim=2) * SIZE)).max())  # at its coarsest
    arc = float((R - points.norm(dim=1)).max())
    error = (texture.at(face, weights) - field(points)).abs().max()
    assert error < 2 * texel + arc + 1 / 255
    assert 2 * texel + arc < 0.03, "a bound that says something"


def test_charts_lie_in_the_texture_and_apart(painted: Mesh) -> None:
    texture = painted.texture
    assert texture is not None
    assert texture.uv.min() >= 0
    assert texture.uv.max() <= 1
    flat = torch.cat([texture.uv * SIZE, torch.zeros(len(texture.uv), 1)], 1)
    corners = flat[texture.corners]
    u, v = (corners[:, i, :2] - corners[:, 0, :2] for i in (1, 2))
    area = ((u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]).abs() / 2).sum()
    _, _, pixel = visible(flat * 4, texture.corners, 4 * SIZE)  # overlap would cover less than the sum of areas
    assert len(pixel) / 16 == pytest.approx(float(area), rel=0.005)
    assert area > 0.4 * SIZE**2, "most of the texture is used"


def test_a_textured_mesh_looks_as_its_vertices_did(painted: Mesh) -> None:
    camera = Camera(40.0, size=96)
    one, other = render_mesh(sphere(), camera), render_mesh(painted, camera)
    assert (one - other).abs().mean() < 0.01
    assert (one - 1).abs().mean() > 0.1


def test_gaussians_colour_a_texture() -> None:
    """Flat Gaussians on the sphere, of known colours; others far within are not seen."""
    mesh = sphere(3)
    count = len(mesh.vertices)
    raw = torch.cat([mesh.vertices, 0.3 * mesh.vertices]) + 0.5
    colour = torch.cat([field(mesh.vertices), torch.zeros(count, 3)])
    blank = torch.zeros(2 * count, 3)
    cloud = Gaussians(
        raw, ((colour - 0.5) / 0.28209479177387814)[:, None], blank, torch.zeros(2 * count, 4), blank[:, :1] + 2
    )
    points = places(mesh)[2]
    assert (paint_of(mesh, cloud)(points) - field(points)).abs().max() < 0.03


def test_a_long_gaussian_colours_along_its_axis() -> None:
    """Of two at equal distances the one whose long axis points here wins, as its density says."""
    eighth = torch.tensor([math.cos(math.pi / 8) - 1, 0.0, 0.0, math.sin(math.pi / 8)])  # about z: x becomes (1, 1)
    spread = torch.tensor([0.05, 0.01, 0.01]).log().sub(math.log(0.01))
    colour = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]).sub(0.5).div(0.28209479177387814)[:, None]
    away = 0.05 / math.sqrt(2)
    at = torch.tensor([[0.5 - away, 0.5 - away, 0.5], [0.5 + away, 0.5 - away, 0.5]])
    cloud = Gaussians(at, colour, spread.expand(2, 3), eighth.expand(2, 4), torch.zeros(2, 1), scaling_activation="exp")
    tiny = Mesh(1e-3 * torch.tensor([[-1.0, -1, 0], [1, -1, 0], [0, 1, 0]]), torch.tensor([[0, 1, 2]]))
    found = paint_of(tiny, cloud)(torch.zeros(1, 3))[0]
    odds = math.exp(0.5 * ((0.05 / 0.01) ** 2 - (0.05 / 0.05) ** 2))
    assert float(found[0]) == pytest.approx(odds / (1 + odds), abs=1e-5)
    assert float(found[2]) == pytest.approx(1 / (1 + odds), abs=1e-5)


# What is written.
def test_a_result_counts_the_faces_of_its_file(tmp_path: Path) -> None:
    voxels = torch.zeros(1, 3, dtype=torch.int32)
    result = Result("ball", voxels, torch.zeros(1, 8), 32, {"mesh": sphere}, finish=Finish(simplify=0.9))
    assert result.counts == {"voxels": 1}
    result.save(tmp_path / "ball.glb")
    faces = len(trimesh.load(tmp_path / "ball.glb", force="mesh").faces)
    assert result.counts["faces"] == faces < len(sphere().faces)


def test_a_textured_file_as_other_programs_see_it(painted: Mesh, tmp_path: Path) -> None:
    path = write_glb(painted, tmp_path / "a.glb", up="z", size=2.0)
    (found,) = trimesh.load(path, process=False).geometry.values()
    assert found.extents.max() == pytest.approx(2.0, rel=1e-6)
    assert len(found.faces) == len(painted.faces)
    image = found.visual.material.baseColorTexture
    assert image.size == (SIZE, SIZE)
    uv = found.visual.uv[found.faces].mean(1)  # trimesh counts v from below
    texel = np.asarray(image)[((1 - uv[:, 1]) * SIZE).astype(int), (uv[:, 0] * SIZE).astype(int)]
    middle = torch.from_numpy(found.triangles_center.copy()).float() * painted.vertices.abs().max().item() / 1.0
    assert np.abs(texel / 255 - field(middle).numpy()).max() < 0.05


def test_a_material_becomes_textures(tmp_path: Path) -> None:
    mesh = sphere(3)
    material = torch.stack([mesh.vertices[:, 0] + 0.5, torch.full_like(mesh.vertices[:, 0], 0.25)], 1)
    for opacity, mode in ((1.0, None), (0.5, "BLEND")):
        whole = Mesh(
            mesh.vertices,
            mesh.faces,
            mesh.vertex_attrs,
            material=torch.cat([material, torch.full_like(material[:, :1], opacity)], 1),
        )
        made = finished(whole, Finish(texture=128))
        assert made.texture is not None
        assert made.texture.material is not None
        path = write_glb(made, tmp_path / "a.glb")
        assert read_tree(path)["materials"][0].get("alphaMode") == mode
        (found,) = trimesh.load(path, process=False).geometry.values()
        picture = np.asarray(found.visual.material.metallicRoughnessTexture)
        assert np.abs(picture[..., 1] - 0.25 * 255).max() <= 1, "roughness is green"
        assert picture[..., 2].min() < 40, "metallic is blue"
        assert picture[..., 2].max() > 215
        assert np.abs(np.asarray(found.visual.material.baseColorTexture)[..., 3] - opacity * 255).max() <= 1


# What closes at the border of the grid.
def test_an_object_at_the_border_of_the_grid_is_closed() -> None:
    def ball(points: Tensor) -> Tensor:
        return (points - torch.tensor([0.0, 0.0, -0.4])).norm(dim=-1) - 0.3

    made = [extract_mesh(cubes(), features(cubes(), ball), 24, closed=closed) for closed in (False, True)]
    assert [watertight(mesh.faces.numpy()) for mesh in made] == [False, True]
    assert float(made[1].vertices[:, 2].min()) == pytest.approx(-0.5, abs=1e-4)
    whole, cap = 4 / 3 * math.pi * 0.3**3, math.pi * 0.2**2 * (0.3 - 0.2 / 3)
    assert solid(made[1]).volume == pytest.approx(whole - cap, rel=0.06)


# What is refused.
@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"simplify": 1.0}, "--simplify"),
        ({"simplify": math.nan}, "--simplify"),
        ({"texture": 10}, "--texture"),
        ({"up": "x"}, "--up"),
        ({"size": 0.0}, "--size"),
        ({"simplify": "90%"}, "--simplify: got '90%'"),
        ({"texture": "1k"}, "--texture: got '1k'"),
        ({"size": "1m"}, "--size: got '1m'"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, float | str], name: str) -> None:
    with pytest.raises(FewstepError, match=name):
        Finish(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("module", "options"), [("fast_simplification", {"simplify": 0.5}), ("xatlas", {"texture": 1024})]
)
def test_a_missing_package_names_its_extra(
    module: str, options: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(FewstepError, match=r"\[mesh\]"):
        Finish(**options)  # type: ignore[arg-type]


def test_what_changes_a_glb_is_refused_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGBA", (64, 64), (200, 30, 30, 255)).save("red.png")
    with pytest.raises(FewstepError, match="--simplify: changes a"):
        command.Run(
            models_of(), Options(finish=Finish(simplify=0.5)), command.Output("a.ply"), Console(), Console()
        ).dry(["red.png"], [])
