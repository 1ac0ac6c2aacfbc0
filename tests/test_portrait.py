"""Pictures for people: meshes of occupancy grids, their portraits, pictures on white, strips."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from fewstep_shapes3d.export.contact import strip
from fewstep_shapes3d.export.portrait import portrait
from fewstep_shapes3d.measures.held_out import evenly_ranked
from fewstep_shapes3d.mesh.coarse import coarse
from fewstep_shapes3d.mesh.faces import watertight
from fewstep_shapes3d.mesh.voxels import voxel_mesh
from fewstep_shapes3d.pictures.white import on_white
from fewstep_shapes3d.representations import Mesh
from PIL import Image
from torch import Tensor

from fewstep.core.suite import SheetRow

EMPTY = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64))


def ball(resolution: int = 24, radius: float = 0.35) -> Tensor:
    line = (torch.arange(resolution) + 0.5) / resolution - 0.5
    return torch.stack(torch.meshgrid(line, line, line, indexing="ij")).norm(dim=0) < radius


def volume(mesh: Mesh) -> float:
    """Signed: positive where the faces are counter-clockwise from outside."""
    a, b, c = mesh.vertices[mesh.faces].double().unbind(1)
    return float((a * torch.linalg.cross(b, c)).sum() / 6)


class TestMeshesOfVoxels:
    def test_a_ball_is_closed_smooth_and_of_its_size(self) -> None:
        mesh = voxel_mesh(ball())
        assert watertight(mesh.faces.numpy())
        assert volume(mesh) == pytest.approx(4 / 3 * np.pi * 0.35**3, rel=0.06)
        assert float((mesh.vertices.norm(dim=1) - 0.35).abs().max()) < 0.7 / 24
        assert mesh.colours is not None
        assert 0 <= float(mesh.colours.min()) < float(mesh.colours.max()) <= 1

    def test_it_stands_where_its_voxels_are(self) -> None:
        grid = torch.zeros(8, 8, 8, dtype=torch.bool)
        grid[0, 3:5, 7] = True  # at the border, and only one voxel thick
        mesh = voxel_mesh(grid)
        middle = (mesh.vertices.amin(0) + mesh.vertices.amax(0)) / 2
        assert middle.tolist() == pytest.approx([0.5 / 8 - 0.5, 0.0, 7.5 / 8 - 0.5], abs=1e-6)
        assert volume(mesh) > 0

    def test_hollows_have_no_wall_within(self) -> None:
        shell = ball() & ~ball(radius=0.2)
        assert len(voxel_mesh(shell).faces) == len(voxel_mesh(ball()).faces)

    def test_nothing_is_an_empty_mesh(self) -> None:
        assert not voxel_mesh(torch.zeros(4, 4, 4)).success


class TestCoarserMeshes:
    def test_few_faces_of_the_same_shape_and_colours(self) -> None:
        mesh = voxel_mesh(ball(48))
        few = coarse(mesh, 1500)
        assert 300 < len(few.faces) <= 1500 < len(mesh.faces)
        assert volume(few) == pytest.approx(volume(mesh), rel=0.05)
        assert few.colours is not None
        assert mesh.colours is not None
        assert torch.allclose(few.colours.mean(0), mesh.colours.mean(0), atol=0.05)

    def test_a_wall_within_lends_the_outer_one_no_colour(self) -> None:
        outer, inner = voxel_mesh(ball(48, 0.35)), voxel_mesh(ball(48, 0.33))
        red, black = torch.zeros(len(outer.vertices), 6), torch.zeros(len(inner.vertices), 6)
        red[:, 0] = 1
        turned = inner.faces.flip(1) + len(outer.vertices)
        both = Mesh(
            torch.cat([outer.vertices, inner.vertices]), torch.cat([outer.faces, turned]), torch.cat([red, black])
        )
        few = coarse(both, 1500)
        assert few.colours is not None
        assert float(few.colours[:, 0].min()) == 1.0
        assert len(few.faces.unique()) == len(few.vertices)

    def test_one_that_is_coarse_keeps_its_faces(self) -> None:
        mesh = voxel_mesh(ball())
        assert torch.equal(coarse(mesh, 10**6).faces, mesh.faces)
        assert not coarse(EMPTY).success


class TestPortraits:
    def test_an_object_is_lit_from_above_left_and_throws_a_shadow(self) -> None:
        mesh = voxel_mesh(ball())
        plain = Mesh(mesh.vertices, mesh.faces)  # grey all over, so that only the light differs
        seen = portrait(plain, 30.0, 96)
        assert seen.shape == (96, 96, 3)
        assert (seen[0, 0] == 255).all()
        upper_left, lower_right = seen[38, 38].mean(), seen[58, 58].mean()
        assert upper_left > 1.3 * lower_right
        column = seen[:, 48].mean(1)
        below = column[np.flatnonzero(column < 200).max() + 2]
        assert 200 < below < 255

    def test_a_sphere_looks_alike_from_everywhere_and_colours_are_its_own(self) -> None:
        mesh = voxel_mesh(ball())
        attrs = torch.tensor([0.9, 0.2, 0.1, 0.0, 0.0, 0.0]).expand(len(mesh.vertices), 6)
        red = dataclasses.replace(mesh, vertex_attrs=attrs)
        a, b = (portrait(red, azimuth, 64).astype(float) for azimuth in (0.0, 90.0))
        assert np.abs(a - b).mean() < 1.0
        assert a[32, 32, 0] > 3 * a[32, 32, 1]

    def test_an_empty_mesh_is_white(self) -> None:
        assert (portrait(EMPTY, 0.0, 8) == 255).all()


class TestPicturesOnWhite:
    def test_a_picture_on_black_as_if_drawn_on_white(self) -> None:
        line = np.arange(64) - 31.5
        alpha = np.clip(20.5 - np.hypot(line[:, None], line), 0, 1)[..., None]
        colour = np.array([200.0, 120.0, 60.0])
        black, white = ((colour * alpha + behind * (1 - alpha)).astype(np.uint8) for behind in (0, 255))
        assert np.abs(on_white(black).astype(int) - white).max() <= 12

    def test_others_stay_as_they_are(self) -> None:
        bright = np.full((8, 8, 3), 90, np.uint8)
        assert (on_white(bright) == bright).all()
        assert (on_white(np.zeros((8, 8, 3), np.uint8)) == 0).all()


class TestStrips:
    def test_a_column_each_and_a_line_an_object(self, tmp_path: Path) -> None:
        red, blue = (np.full((20, 20, 3), colour, np.uint8) for colour in ((200, 0, 0), (0, 0, 200)))
        strip([SheetRow("a, 1 step", [red, blue]), SheetRow("b", [blue, red])], tmp_path / "s.png", "Two objects.", 60)
        with Image.open(tmp_path / "s.png") as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        places = [np.argwhere((pixels == colour).all(-1)) for colour in ((200, 0, 0), (0, 0, 200))]
        for first, second in (places, places[::-1]):
            assert len(first) == 2 * 60 * 60
            assert len(second) == 2 * 60 * 60
        top = pixels[places[0][0][0]]
        colours = [tuple(colour) for colour in top if tuple(colour) in ((200, 0, 0), (0, 0, 200))]
        assert colours == [(200, 0, 0)] * 60 + [(0, 0, 200)] * 60

    def test_the_middles_of_equal_parts_of_the_ranking(self) -> None:
        scores = torch.tensor([0.0, 3.0, 1.0, 2.0, 5.0, 4.0, 7.0, 6.0])
        assert evenly_ranked(scores, 4) == [7, 5, 3, 0]  # ranks 1, 3, 5, 7 from the best, counted from 0
        assert sorted(evenly_ranked(scores, 20)) == list(range(8))
