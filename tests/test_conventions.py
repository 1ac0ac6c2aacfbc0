"""Conventions that weights, viewers and saved results rely on: directions, orders and sums, each by an example."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import trimesh
from fewstep_shapes3d.export import write_glb
from fewstep_shapes3d.export.camera import Camera
from fewstep_shapes3d.representations import Mesh
from fewstep_shapes3d.sparse.noise import voxel_noise
from fewstep_shapes3d.sparse.resampling import sample_group_norm
from fewstep_shapes3d.sparse.windows import windows
from fewstep_trellis.backbone import StructureFlow
from torch import Tensor

from fewstep.core.batch import Condition
from fewstep.core.layout import Dense, Layout, Packed
from fewstep.metrics import frechet, mmd_rbf, sliced_wasserstein


def line(*places: int) -> Tensor:
    return torch.tensor([[place, 0, 0] for place in places])


def test_a_shift_moves_voxels_up_before_they_are_cut_into_windows() -> None:
    found = windows(Packed.of_lengths([8], line(*range(8))), 4, shift=1)
    assert found.layout.lengths_list == [3, 4, 1]  # 0 to 2, 3 to 6, 7
    assert found.order.tolist() == list(range(8))


def test_windows_do_not_reach_into_the_next_sample() -> None:
    found = windows(Packed.of_lengths([2, 3], line(0, 1, 0, 1, 2)), 4)
    assert found.layout.lengths_list == [2, 3]


def test_group_norm_adds_eps_to_the_variance() -> None:
    x = torch.tensor([[0.1, -0.1], [0.3, -0.3]], dtype=torch.float64)
    variance = (0.01 + 0.01 + 0.09 + 0.09) / 4
    found = sample_group_norm(x, Packed.of_lengths([2]), 1, eps=0.05)
    torch.testing.assert_close(found, x / (variance + 0.05) ** 0.5)


def test_voxel_noise_belongs_to_seed_sample_and_place() -> None:
    here, more = Packed.of_lengths([2, 2], line(0, 5, 0, 5)), Packed.of_lengths([3, 1], line(5, 7, 0, 5))
    noise, other = voxel_noise(0, here, torch.zeros(4, 3)), voxel_noise(0, more, torch.zeros(4, 3))
    assert torch.equal(other, torch.stack([noise[1], other[1], noise[0], noise[3]]))
    assert len({tuple(row) for row in torch.cat([noise, other]).tolist()}) == 5  # four places, and the one at 7
    assert not torch.equal(noise, voxel_noise(1, here, torch.zeros(4, 3)))


def test_a_glb_is_turned_to_y_up_and_keeps_its_outside_out(tmp_path: Path) -> None:
    box = trimesh.creation.box((0.2, 0.4, 0.6))
    vertices = torch.tensor(box.vertices).float() + torch.tensor([0.1, 0.2, 0.3])
    attrs = torch.cat([torch.tensor([1.0, 0.5, 0.0]).expand(8, 3), torch.zeros(8, 3)], 1)
    (found,) = trimesh.load(
        write_glb(Mesh(vertices, torch.tensor(box.faces), attrs), tmp_path / "a.glb")
    ).geometry.values()
    x, y, z = vertices.unbind(1)
    assert found.vertices == pytest.approx(torch.stack([x, z, -y], 1).numpy())
    assert found.faces.tolist() == box.faces.tolist()
    outwards = (found.vertices - found.vertices.mean(0)).round(3)
    assert ((found.vertex_normals > 0) == (outwards > 0)).all()
    assert found.volume == pytest.approx(0.2 * 0.4 * 0.6)  # negative where faces look inwards
    red, green, blue, alpha = found.visual.vertex_attributes["color"][0]
    assert red == alpha == 255
    assert (green, blue) == (round(255 * ((0.5 + 0.055) / 1.055) ** 2.4), 0)


@pytest.mark.parametrize(
    ("azimuth", "forward", "right"),
    [(0.0, (0, 1, 0), (1, 0, 0)), (90.0, (-1, 0, 0), (0, 1, 0)), (180.0, (0, -1, 0), (-1, 0, 0))],
)
def test_a_camera_goes_round_from_the_front_towards_x(
    azimuth: float, forward: tuple[int, ...], right: tuple[int, ...]
) -> None:
    axes = Camera(azimuth, elevation=0.0).axes
    expected = torch.tensor([right, (0, 0, -1), forward]).float()  # down the picture is down in the scene
    torch.testing.assert_close(axes, expected, rtol=0, atol=1e-6)


def test_the_covariance_of_a_frechet_distance_is_the_unbiased_one() -> None:
    """In one dimension (m1 - m2)^2 + (s1 - s2)^2, with deviations over n - 1; the sets are of unequal size."""
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [3.0], [6.0]])
    assert frechet(x, y, 1) == pytest.approx((1 - 3) ** 2 + (2**0.5 - 3) ** 2)


def test_quantiles_of_sets_of_unequal_size_are_read_at_midpoints() -> None:
    """Of {0, 1} at 1/6, 1/2 and 5/6: 0, 1, 1, against 0, 1, 2."""
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0], [2.0]])
    assert sliced_wasserstein(x, y, 1) == pytest.approx((1 / 3) ** 0.5)


def test_the_width_of_the_kernel_is_the_references() -> None:
    x, y = torch.tensor([[0.0], [9.0], [30.0]]), torch.tensor([[0.0], [1.0], [3.0]])
    assert mmd_rbf(x, y) == pytest.approx(mmd_rbf(x, y, bandwidth=2.0))  # of the distances 1, 2 and 3


def test_a_flow_scales_its_time_before_it_is_rounded() -> None:
    class Records(StructureFlow):
        def velocity(
            self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, s_B: Tensor | None = None
        ) -> Tensor:
            self.seen = t_B
            return x

    class Model(torch.nn.Module):
        points = 1

    flow, t_B = Records(Model()), torch.linspace(0, 1, 64, dtype=torch.float64)
    flow(torch.zeros(64, 1), t_B, Condition(torch.zeros(64, 1, 1)), Dense(64))
    assert torch.equal(flow.seen, (1000 * t_B).float())
    assert not torch.equal(flow.seen, 1000 * t_B.float())  # which is what rounding first would give
