"""The grid renderer against closed forms: silhouettes, positions, normals, hidden surfaces."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fewstep_shapes3d.export.contact import contact_sheet
from fewstep_shapes3d.voxel_render import frame, render_views
from PIL import Image

from fewstep.errors import FewstepError


def dark(picture: torch.Tensor) -> torch.Tensor:
    """How much of each pixel is covered, for surfaces far from white: 1 inside, 0 outside."""
    return (picture < 0.999).float()


@pytest.mark.parametrize(("azimuth", "elevation"), [(0.0, 0.0), (30.0, 25.0), (205.0, -40.0), (10.0, 90.0)])
@pytest.mark.parametrize("resolution", [4, 16])
def test_the_silhouette_of_a_cube_has_its_area(azimuth: float, elevation: float, resolution: int) -> None:
    size = 192
    picture = render_views(torch.ones(1, resolution, resolution, resolution), [azimuth], elevation, size)[0, 0]
    a, e = math.radians(azimuth), math.radians(elevation)
    # A unit cube's projection has the area |n_x| + |n_y| + |n_z| of the viewing direction n.
    area = (abs(math.sin(a)) + abs(math.cos(a))) * math.cos(e) + abs(math.sin(e))
    expected = area * (size / (2 * frame(elevation))) ** 2
    assert dark(picture).sum() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("azimuth", [0.0, 30.0, 120.0, 300.0])
def test_a_single_voxel_lands_where_it_should(azimuth: float) -> None:
    grid = torch.zeros(1, 8, 8, 8)
    x, y, z = 6, 1, 7
    grid[0, x, y, z] = 1
    size, elevation = 256, 25.0
    rows, columns = dark(render_views(grid, [azimuth], elevation, size)[0, 0]).nonzero().float().T
    p = [(i + 0.5) / 8 - 0.5 for i in (x, y, z)]
    a, e = math.radians(azimuth), math.radians(elevation)
    right = p[0] * math.cos(a) + p[1] * math.sin(a)
    up = -p[0] * math.sin(a) * math.sin(e) + p[1] * math.cos(a) * math.sin(e) + p[2] * math.cos(e)
    scale = size / (2 * frame(elevation))
    assert float(columns.mean()) + 0.5 == pytest.approx(size / 2 + right * scale, abs=0.6)
    assert float(rows.mean()) + 0.5 == pytest.approx(size / 2 - up * scale, abs=0.6)


def test_a_sphere_is_shaded_by_its_normals() -> None:
    n, size = 48, 96
    line = (torch.arange(n) + 0.5) / n - 0.5
    x, y, z = torch.meshgrid(line, line, line, indexing="ij")
    sphere = (x**2 + y**2 + z**2).sqrt() < 0.45
    picture = render_views(sphere[None], [40.0], 20.0, size)[0, 0]
    scale = size / (2 * frame(20.0))
    at = (torch.arange(size) + 0.5 - size / 2) / scale / 0.45
    up, right = torch.meshgrid(-at, at, indexing="ij")
    inside = (up**2 + right**2) < 0.8
    toward = (1 - up**2 - right**2).clamp(min=0).sqrt()
    lit = (toward + 0.45 * up - 0.35 * right).clamp(min=0)
    pair = torch.stack([picture[inside], lit[inside]])
    assert torch.corrcoef(pair)[0, 1] > 0.93


def test_near_surfaces_hide_far_ones() -> None:
    wall = torch.zeros(1, 16, 16, 16)
    wall[:, :, 0] = 1  # at -y, which azimuth 0 looks at
    behind = wall.clone()
    behind[:, 4:12, 8:, 4:12] = 1
    assert torch.equal(render_views(wall, [0.0], 0.0), render_views(behind, [0.0], 0.0))
    assert not torch.equal(render_views(wall, [180.0], 0.0), render_views(behind, [180.0], 0.0))


def test_turning_the_camera_is_turning_the_object() -> None:
    generator = torch.Generator().manual_seed(0)
    grid = torch.rand(2, 12, 12, 12, generator=generator) > 0.9
    turned = grid.rot90(1, (1, 2))  # x to y: a quarter turn against the clock, seen from above
    a, b = render_views(grid, [30.0], 25.0, 64), render_views(turned, [120.0], 25.0, 64)
    assert (a - b).abs().mean() < 2e-3


def test_mirrored_grids_have_mirrored_silhouettes() -> None:
    grid = torch.rand(1, 10, 10, 10, generator=torch.Generator().manual_seed(1)) > 0.95
    a, b = render_views(grid, [30.0], 25.0, 96), render_views(grid.flip(1), [-30.0], 25.0, 96).flip(-1)
    assert (dark(a) - dark(b)).abs().mean() < 0.01


def test_batches_types_and_ranges() -> None:
    grid = torch.rand(3, 1, 8, 8, 8, generator=torch.Generator().manual_seed(2))
    every = render_views(grid, size=40)
    assert every.shape == (3, 4, 40, 40)
    assert every.dtype == torch.float32
    assert 0 <= every.min() <= every.max() <= 1
    for at in range(3):
        assert torch.equal(every[at], render_views(grid[at] > 0.5, size=40)[0])
    assert torch.equal(every, render_views(grid * 20 - 10, size=40, threshold=0.0))
    assert (render_views(torch.zeros(2, 8, 8, 8), size=16) == 1).all(), "an empty grid is a white picture"
    assert render_views(torch.zeros(0, 8, 8, 8), size=16).shape == (0, 4, 16, 16)


@pytest.mark.parametrize("shape", [(8, 8, 8), (1, 2, 8, 8, 8), (1, 8, 8, 9)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(FewstepError, match=r"accepted: \[B,R,R,R\]"):
        render_views(torch.zeros(shape))


def test_sizes_and_elevations_out_of_range_are_refused() -> None:
    for size, elevation in ((0, 0.0), (8, 91.0)):
        with pytest.raises(FewstepError, match="elevation_deg"):
            render_views(torch.zeros(1, 8, 8, 8), size=size, elevation_deg=elevation)


def test_contact_sheet(tmp_path: Path) -> None:
    black, red = np.zeros((20, 20)), np.zeros((30, 30, 3), np.uint8)
    red[..., 0] = 255
    label = "a label of many words that cannot stay on one line"
    contact_sheet([("first", [black, red]), (label, [red, black])], tmp_path / "s.png", tile=60)
    with Image.open(tmp_path / "s.png") as sheet:
        left = sheet.width - 2 * 64
        assert sheet.height == 2 * 64 + 4
        assert 60 < left < 200
        assert sheet.getpixel((left + 30, 34)) == (0, 0, 0)
        assert sheet.getpixel((left + 94, 34)) == (255, 0, 0)
        assert min(sheet.crop((0, 0, left - 8, sheet.height)).convert("L").tobytes()) < 100  # there is text
