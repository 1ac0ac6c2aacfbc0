"""What the prepared set knows of the surface in each voxel, against closed forms of a box and a sphere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fewstep_shapes3d.data import SWEETHOME3D
from fewstep_shapes3d.data.attributes import CHANNELS, LEVELS, MIRRORED, RANGE, describe, features, write_codes
from fewstep_shapes3d.data.materials import Floats, Material
from fewstep_shapes3d.data.mesh import Mesh
from fewstep_shapes3d.data.prepared import PreparedSet
from fewstep_shapes3d.data.setfiles import SURFACE
from fewstep_shapes3d.data.surface import CENTRES, SUBDIVISION, SurfaceField, lattice
from fewstep_shapes3d.data.voxels import Grid, voxelise

from fewstep.errors import FewstepError

pytest.importorskip("open3d", exc_type=ImportError)
pytest.importorskip("trimesh")
R = 16
THICK = 0.5 / SUBDIVISION  # voxels added on every side


def mesh_of(vertices: Floats, faces: Floats, colours: list[tuple[float, float, float]]) -> Mesh:
    """A mesh whose face i has the material i mod the number of colours."""
    material = np.arange(len(faces)) % len(colours)
    uv = np.zeros((len(vertices), 2))
    return Mesh(vertices, faces.astype(np.int64), uv, material, [Material(np.array([*c, 1.0])) for c in colours])


def box(half: float = 0.3, open_top: bool = False) -> Mesh:
    """An axis-aligned cube; its two x faces are red, the others blue."""
    import trimesh

    made = trimesh.creation.box((2 * half,) * 3)
    faces = made.faces[np.argsort(-np.abs(made.face_normals[:, 0]), kind="stable")]
    if open_top:
        faces = np.array([f for f in faces if not np.allclose(made.vertices[f, 2], half)])
    mesh = mesh_of(made.vertices, faces, [(1, 0, 0), (0, 0, 1)])
    mesh.material = (np.abs(made.vertices[faces][:, :, 0].mean(1)) < half - 1e-6).astype(np.int64)
    return mesh


def sphere(radius: float = 0.4) -> Mesh:
    import trimesh

    made = trimesh.creation.icosphere(subdivisions=5, radius=radius)
    return mesh_of(made.vertices, made.faces, [(0.2, 0.4, 0.6)])


def field(mesh: Mesh) -> SurfaceField:
    return SurfaceField(mesh, voxelise(mesh, R))


def test_distances_of_a_sphere() -> None:
    made = field(sphere())
    points = (made.coords[:, None] + CENTRES) / R - 0.5
    expected = (np.linalg.norm(points, axis=-1) - 0.4) * R - THICK
    assert np.abs(made.at_centres() - expected).max() < 0.02  # the facets of the sphere are within 0.01 voxels of it


def test_normals_and_colours_of_a_sphere_point_outwards() -> None:
    made = field(sphere())
    at = made.at_corners()
    outward = made.corners / made.steps - 0.5
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    clear = np.abs(at.distance + THICK) > 0.01
    assert ((at.normal * outward).sum(1)[clear] > 0.99).all()
    assert np.allclose(at.colour, (0.2, 0.4, 0.6))


def test_a_box_without_a_lid_has_walls_but_no_inside() -> None:
    closed, opened = field(box()), field(box(open_top=True))
    assert not closed.outside[tuple([closed.steps // 2] * 3)]
    assert opened.outside[tuple([opened.steps // 2] * 3)]
    inner = np.array([[-0.3 + 0.8 / R, 0.0, -0.1]])  # 0.8 voxels inwards of the wall at x = -0.3
    assert closed._sample(inner).distance[0] == pytest.approx(-0.8 - THICK, abs=1e-4)
    assert opened._sample(inner).distance[0] == pytest.approx(0.8 - THICK, abs=1e-4)
    assert opened._sample(np.array([[-0.3, 0.0, -0.1]])).distance[0] == pytest.approx(-THICK, abs=1e-4)


def test_colours_are_those_of_the_voxels_own_surface() -> None:
    made = field(box(half=5.5 / R))
    colour = made.colours()
    side = np.abs(made.coords + 0.5 - R / 2) > 5
    red, blue = side[:, 0] & ~side[:, 1:].any(1), ~side[:, 0]
    assert np.allclose(colour[red], (1, 0, 0))
    assert np.allclose(colour[blue], (0, 0, 1))
    edge = colour[side[:, 0] & side[:, 1] & ~side[:, 2]]
    assert ((edge[:, 0] > 0.3) & (edge[:, 2] > 0.3)).all(), "an edge has both"


def test_codes_mirror_with_the_mesh() -> None:
    mesh = box()
    mesh.vertices = mesh.vertices @ np.array([[1, 0.2, 0.1], [0, 0.9, 0], [0.3, 0, 1]])
    flipped = Mesh(mesh.vertices * [-1, 1, 1], mesh.faces, mesh.uv, mesh.material, mesh.materials)
    grid: Grid = voxelise(mesh, R)
    codes, turned = describe(mesh, grid), describe(flipped, np.flip(grid, 0))
    coords = np.argwhere(grid)
    order = np.lexsort((coords[:, 2], coords[:, 1], R - 1 - coords[:, 0]))
    off = np.abs(codes[order][:, MIRRORED].astype(int) - turned.astype(int))
    assert (off[:, :8] <= 1).mean() > 0.999
    assert off.mean() < 0.2


def test_features_undo_the_codes() -> None:
    made = describe(sphere(), voxelise(sphere(), R))
    exact = field(sphere()).at_centres().clip(-RANGE, RANGE)
    found = features(made)
    assert found.shape == (len(made), CHANNELS)
    assert found.abs().max() <= 1
    assert np.abs(found[:, :8].numpy() * RANGE - exact).max() <= RANGE / LEVELS + 1e-6


def test_codes_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        write_codes(tmp_path / name, [describe(box(), voxelise(box(), R)), describe(sphere(), voxelise(sphere(), R))])
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_lattice_is_every_corner_once() -> None:
    coords = np.array([[0, 0, 0], [0, 0, 1], [2, 1, 0]])
    expected = {tuple(4 * c + o) for c in coords for o in np.indices((5, 5, 5)).reshape(3, -1).T}
    found = lattice(coords)
    assert len(found) == len(expected)
    assert {tuple(row) for row in found} == expected


def test_shipped_surface_fits_the_shipped_occupancy() -> None:
    data = PreparedSet.load()
    coords, values = data.surface(int(data.train[3]))
    assert len(coords) == len(values) == data.occupancy(data.train[3:4]).sum()
    # A voxel is in the structure because the surface passes: some part of it is near or within.
    near = values[:, :8].min(1).values * RANGE
    assert (near < 0.45).float().mean() > 0.99
    mirrored, turned = data.surface(int(data.train[3]), flip=True)
    assert torch.equal(mirrored, data.occupancy(data.train[3:4], True)[0, 0].nonzero())
    back = {(31 - int(x), int(y), int(z)): row for (x, y, z), row in zip(mirrored.tolist(), turned, strict=True)}
    assert all(
        torch.equal(back[(x, y, z)][MIRRORED], row) for (x, y, z), row in zip(coords.tolist(), values, strict=True)
    )


def test_a_set_without_surface_says_so(tmp_path: Path) -> None:
    for file in SWEETHOME3D.iterdir():
        if file.name != SURFACE:
            (tmp_path / file.name).symlink_to(file)
    data = PreparedSet.load(tmp_path)
    with pytest.raises(FewstepError, match=r"surface\.npz.*missing.*data prepare"):
        data.surface(0)


def test_damaged_surface_is_one_error(tmp_path: Path) -> None:
    for file in SWEETHOME3D.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[: 200_000 if file.name == SURFACE else None])
    with pytest.raises(FewstepError, match=r"surface\.npz cannot be used"):
        PreparedSet.load(tmp_path).surface(0)
