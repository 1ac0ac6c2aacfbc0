"""Mesh extraction: the tables' own logic, closed forms, gradients, and what it refuses."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
import trimesh
from fewstep_shapes3d.mesh import extract_mesh
from fewstep_shapes3d.mesh.tables import CORNERS, EDGES, ambiguous_face, inside, patches, tables
from torch import Tensor

from fewstep.errors import FewstepError

R = 24


def cubes(solid: bool = True) -> Tensor:
    """All cubes of the grid [R^3, 3], or those near a sphere of radius 0.3."""
    grid = torch.cartesian_prod(*[torch.arange(R)] * 3)
    away = ((grid + 0.5) / R - 0.5).norm(dim=1) - 0.3
    return grid if solid else grid[away.abs() < 0.1]


def features(coords: Tensor, field: object) -> Tensor:
    """Features whose signed distance at the corners is ``field`` of their places, everything else 0."""
    places = (coords[:, None] + torch.tensor(CORNERS)).double() / R - 0.5
    feats = torch.zeros(len(coords), 101, dtype=torch.float64)
    feats[:, :8] = field(places) + 1 / R  # type: ignore[operator]
    return feats


def ball(places: Tensor) -> Tensor:
    return places.norm(dim=-1) - 0.3


def ring(places: Tensor) -> Tensor:
    flat = places[..., :2].norm(dim=-1) - 0.28
    return torch.stack([flat, places[..., 2]], -1).norm(dim=-1) - 0.12


@pytest.mark.parametrize(
    ("field", "volume", "area", "euler"),
    [
        (ball, 4 / 3 * math.pi * 0.3**3, 4 * math.pi * 0.3**2, 2),
        (ring, 2 * math.pi**2 * 0.28 * 0.12**2, 4 * math.pi**2 * 0.28 * 0.12, 0),
    ],
)
def test_closed_fields_give_watertight_meshes_of_the_right_size(
    field: object, volume: float, area: float, euler: int
) -> None:
    mesh = extract_mesh(cubes(), features(cubes(), field), R)
    solid = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)
    assert solid.is_watertight
    assert solid.is_winding_consistent
    assert solid.euler_number == euler
    assert solid.volume == pytest.approx(volume, rel=0.06)  # a chord lies inside its arc
    assert solid.area == pytest.approx(area, rel=0.04)


def test_a_plane_is_met_exactly() -> None:
    def plane(places: Tensor) -> Tensor:
        return places @ torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64) - 0.03

    mesh = extract_mesh(cubes(), features(cubes(), plane), R)
    assert plane(mesh.vertices).abs().max() < 1e-12
    normals = mesh.face_normals[:, 0]
    assert torch.allclose(normals, torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64).expand_as(normals))


def test_the_order_of_the_cubes_does_not_matter() -> None:
    coords = cubes(solid=False)
    feats = features(coords, ball) + 0.1 * torch.randn(len(coords), 101, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(len(coords), generator=torch.Generator().manual_seed(1))
    one, other = extract_mesh(coords, feats, R), extract_mesh(coords[order], feats[order], R)
    assert torch.equal(one.faces, other.faces)
    assert torch.allclose(one.vertices, other.vertices, atol=1e-12)


def test_gradients_against_finite_differences() -> None:
    coords = torch.cartesian_prod(*[torch.arange(4)] * 3)
    generator = torch.Generator().manual_seed(0)
    feats = torch.randn(64, 101, generator=generator, dtype=torch.float64, requires_grad=True)

    def value(feats: Tensor) -> Tensor:
        mesh = extract_mesh(coords, feats, 4, training=True)
        assert mesh.vertex_attrs is not None
        assert mesh.regulariser is not None
        return torch.cat(
            [mesh.vertices.flatten(), mesh.vertex_attrs.flatten(), torch.stack([*mesh.regulariser.values()])]
        )

    assert torch.autograd.gradcheck(value, feats, fast_mode=True)


def test_gradients_after_a_first_extraction_in_inference_mode() -> None:
    """What is kept between calls must not be tied to the mode of the first one."""
    coords = torch.cartesian_prod(*[torch.arange(4)] * 3)
    feats = torch.randn(64, 53, generator=torch.Generator().manual_seed(0))
    tables.cache_clear()
    with torch.inference_mode():
        extract_mesh(coords, feats, 4)
    extract_mesh(coords, feats.requires_grad_(), 4, training=True).vertices.sum().backward()
    assert feats.grad is not None
    assert feats.grad.abs().sum() > 0


def test_features_are_left_as_they_were() -> None:
    feats = features(cubes(), ball)
    kept = feats.clone()
    first = extract_mesh(cubes(), feats, R)
    assert torch.equal(feats, kept)
    assert torch.equal(first.vertices, extract_mesh(cubes(), feats, R).vertices)


@pytest.mark.parametrize("case", range(256))
def test_each_crossed_edge_is_in_one_patch(case: int) -> None:
    crossed = [n for n, (a, b) in enumerate(EDGES) if (case >> a & 1) != (case >> b & 1)]
    assert sorted(n for patch in patches(case) for n in patch) == crossed


def test_the_tables_as_a_whole() -> None:
    assert Counter(len(patches(case)) for case in range(256)) == {0: 2, 1: 162, 2: 82, 3: 8, 4: 2}
    ambiguous = [case for case in range(256) if ambiguous_face(case) is not None]
    assert len(ambiguous) == 36
    assert all(len(inside(case)) in (5, 6) for case in ambiguous)
    assert max(len(patch) for case in range(256) for patch in patches(case)) == 7
    assert patches(231)[0] == (4, 5, 9)


@pytest.mark.parametrize(
    ("coords", "width", "words"),
    [
        (torch.tensor([[0, 0, 0, 0]]), 101, "shape of coords"),
        (torch.tensor([[0, 0, 0]]), 100, "shape of feats"),
        (torch.tensor([[0, 0, 8]]), 101, "0 to 7"),
        (torch.tensor([[0, 0, -1]]), 53, "0 to 7"),
        (torch.tensor([[1, 2, 3], [1, 2, 3]]), 53, "each cube once"),
    ],
)
def test_what_is_refused(coords: Tensor, width: int, words: str) -> None:
    with pytest.raises(FewstepError, match=words):
        extract_mesh(coords, torch.zeros(len(coords), width), 8)
