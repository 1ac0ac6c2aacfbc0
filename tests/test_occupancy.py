"""Volume IoU and Chamfer distance of occupancy grids, against hand-computed values and all pairs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fewstep_shapes3d.measures.occupancy import chamfer, volume_iou
from torch import Tensor

from fewstep.errors import FewstepError


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def grid(*cells: tuple[int, int, int], resolution: int = 8) -> Tensor:
    found = torch.zeros(1, resolution, resolution, resolution, dtype=torch.bool)
    for x, y, z in cells:
        found[0, x, y, z] = True
    return found


def test_iou_of_overlapping_boxes() -> None:
    a, b = torch.zeros(2, 8, 8, 8, dtype=torch.bool), torch.zeros(2, 8, 8, 8, dtype=torch.bool)
    a[0, :4, :4, :4], b[0, 2:6, :4, :4] = True, True  # 64 and 64 cells, 32 in common
    a[1, :2], b[1, 5:] = True, True
    assert volume_iou(a, b).tolist() == [pytest.approx(32 / 96), 0.0]


def test_iou_of_empty_grids() -> None:
    empty = grid()
    assert volume_iou(empty, empty).item() == 1.0
    assert volume_iou(empty, grid((0, 0, 0))).item() == 0.0


def test_chamfer_of_a_translated_point_is_the_translation() -> None:
    assert chamfer(grid((1, 1, 1)), grid((4, 5, 1))).item() == pytest.approx(5 / 8)


def test_chamfer_is_half_the_sum_of_both_mean_distances() -> None:
    # Forward: 0 and 3 voxels (mean 1.5); back: 0. In grid sides of 8 voxels.
    assert chamfer(grid((0, 0, 0), (3, 0, 0)), grid((0, 0, 0))).item() == pytest.approx(0.5 * 1.5 / 8)


def test_chamfer_against_all_pairs() -> None:
    a, b = normal(3, 8, 8, 8) > 1, normal(3, 8, 8, 8, seed=1) > 1
    for x, y, got in zip(a, b, chamfer(a, b), strict=True):
        apart = torch.cdist(x.nonzero().double(), y.nonzero().double()) / 8
        assert got.item() == pytest.approx(0.5 * float(apart.min(1).values.mean() + apart.min(0).values.mean()))


def test_chamfer_with_denormals_flushed_to_zero() -> None:
    """SciPy's tree overflows the stack on coordinates of 0 then."""
    full = torch.ones(1, 16, 16, 16, dtype=torch.bool)
    try:
        torch.set_flush_denormal(True)
        assert chamfer(full, full).item() == 0.0
    finally:
        torch.set_flush_denormal(False)


def test_chamfer_of_empty_grids() -> None:
    far = chamfer(grid((0, 0, 0)), grid((7, 7, 7))).item()
    assert chamfer(grid(), grid()).item() == 0.0
    one_sided = chamfer(grid(), grid((0, 0, 0))).item()
    assert one_sided == pytest.approx(math.sqrt(3))
    assert one_sided > far


@pytest.mark.parametrize("measure", [volume_iou, chamfer])
def test_shape_measures_refuse_what_is_no_pair_of_grids(measure: Any) -> None:
    with pytest.raises(FewstepError, match="boolean grids"):
        measure(grid(), grid(resolution=4))
    with pytest.raises(FewstepError, match="boolean grids"):
        measure(grid().float(), grid().float())
