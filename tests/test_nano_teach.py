"""Teaching: crops, losses, the data set of latents, the description, and what a flow makes of its picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from fewstep_shapes3d.data.targets import CLIP, Target, load_target
from fewstep_shapes3d.representations import Gaussians
from fewstep_trellis.checkpoint import save_model
from fewstep_trellis.models import SLatEncoder
from fewstep_trellis.normalisation import Normalisation
from fewstep_trellis.slat_dataset import PreparedLatents, PreparedLatentsConfig, cube_around
from fewstep_trellis.teach.condition import told_by_picture
from fewstep_trellis.teach.crops import WALL, Crop, cut, layout_of
from fewstep_trellis.teach.describe import write_pipeline
from fewstep_trellis.teach.slat_gs import gaussian_terms
from fewstep_trellis.teach.slat_quality import channel_statistics, compare, sample, watertight, without_cavities
from fewstep_trellis.teach.slat_vae import BITS, at_corners, field_terms
from torch import Tensor

from fewstep.core.backbone import Backbone, Teacher
from fewstep.core.batch import Batch, Condition
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense, Packed
from fewstep.errors import FewstepError

R = 4
COORDS = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 1], [2, 2, 2], [3, 3, 3]])


def target() -> Target:
    """A slanted plane x + z = 0 in [-0.5, 0.5]^3, known at every corner of the grid."""
    corners = torch.cartesian_prod(*[torch.arange(4 * R + 1)] * 3)
    place = corners / (4 * R) - 0.5
    distance = ((place[:, 0] + place[:, 2]) / 2**0.5 * R).clamp(-CLIP, CLIP)
    normal = torch.tensor([1.0, 0.0, 1.0]).div(2**0.5).expand(len(corners), 3)
    draw = torch.Generator().manual_seed(0)
    points = torch.rand(4000, 3, generator=draw) - 0.5
    points[:, 2] = -points[:, 0]
    return Target(
        corners, distance, place + 0.5, normal, points, points + 0.5, torch.ones(len(points), dtype=torch.bool)
    )


def crop() -> Crop:
    return cut(COORDS, torch.arange(5.0)[:, None].expand(5, 11), target(), torch.tensor([0, 1, 3]), R)


def test_the_first_step_tells_what_the_picture_told() -> None:
    """Knowing a share of what sets an object apart from the mean explains 1 - (1 - share)^2 of the variance."""
    draws = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(6, 2, 4, 4, 4, generator=draws) + 3, torch.randn(6, 2, 4, 4, 4, generator=draws)
    batch = Batch(x0, Dense(6), Condition(torch.zeros(6, 1, 1)))
    for share in (0.0, 0.5, 1.0):
        guess = x0.mean(0) + share * (x0 - x0.mean(0))

        def velocity(x: Tensor, t: Tensor, *_: Any, guess: Tensor = guess, **__: Any) -> Tensor:
            assert (t == 1).all()
            return Interpolant(1e-5).velocity(guess, x)

        field = cast(Teacher, Mock(side_effect=velocity, interpolant=Interpolant(1e-5)))
        assert told_by_picture(field, batch, noise) == pytest.approx(1 - (1 - share) ** 2, abs=1e-3)


def test_the_greatest_cube_that_fits_is_taken() -> None:
    assert cube_around(COORDS, 3, COORDS[0]).tolist() == [0, 1, 2]
    assert cube_around(COORDS, 2, COORDS[0]).tolist() == [0], "a cube of side 3 would hold three"
    assert cube_around(COORDS, 5, COORDS[0]).tolist() == [0, 1, 2, 3, 4]
    assert cube_around(COORDS, 4, COORDS[0]).tolist() == [0, 1, 2, 3]


def test_cut_holds_every_corner_of_its_cubes_once_with_its_own_values() -> None:
    made, whole = crop(), target()
    expected = {tuple((4 * c + o).tolist()) for c in made.coords for o in torch.cartesian_prod(*[torch.arange(5)] * 3)}
    assert {tuple(c.tolist()) for c in made.corners} == expected
    assert len(made.corners) == len(expected)
    index = (made.corners[:, 0] * 17 + made.corners[:, 1]) * 17 + made.corners[:, 2]
    border = (made.corners % 16 == 0).any(1)
    assert torch.allclose(made.distance[~border], whole.distance[index][~border] - WALL)
    assert (made.distance[border] >= 0.125).all(), "or extraction would leave a hole there"
    assert torch.allclose(made.attributes[:, :3], whole.colour[index])
    assert torch.equal(((made.points + 0.5) * R).long(), made.coords[made.owner])
    assert made.features[:, 0].tolist() == [0, 1, 3]


def test_flipped_target_is_the_mirror_image() -> None:
    made = target().flipped(4 * R)
    place = made.corners / (4 * R) - 0.5
    assert torch.allclose(made.distance, ((place[:, 2] - place[:, 0]) / 2**0.5 * R).clamp(-CLIP, CLIP), atol=1e-6)
    assert made.normal[0, 0] < 0
    assert made.normal[0, 2] > 0
    assert torch.allclose(made.points[:, 0], made.points[:, 2])


def cubes_of(coords: Tensor) -> Tensor:
    return (4 * coords[:, None] + torch.cartesian_prod(*[torch.arange(4)] * 3)).flatten(0, 1)


def test_values_at_corners_are_means_over_the_cubes_that_share_them() -> None:
    made, cubes = crop(), cubes_of(crop().coords)
    raw = torch.randn(len(cubes), 101, generator=torch.Generator().manual_seed(1))
    sums: dict[tuple[int, ...], list[Tensor]] = {}
    for row, cube in zip(raw, cubes, strict=True):
        for i in range(8):
            colour = row[53:].view(8, 6)[i]
            sums.setdefault(tuple((cube + BITS[i]).tolist()), []).append(torch.cat([row[i : i + 1], colour]))
    value, attributes = at_corners(raw, cubes, made.corners)
    for at in range(0, len(made.corners), 7):
        expected = torch.stack(sums[tuple(made.corners[at].tolist())]).mean(0)
        assert torch.allclose(value[at], expected[0], atol=1e-5)
        assert torch.allclose(attributes[at], expected[1:].sigmoid(), atol=1e-5)


def test_a_perfect_field_costs_nothing_but_the_soft_sign() -> None:
    made, cubes = crop(), cubes_of(crop().coords)
    lookup = {tuple(c.tolist()): at for at, c in enumerate(made.corners)}
    rows = torch.tensor([[lookup[tuple((cube + bit).tolist())] for bit in BITS] for cube in cubes])
    raw = torch.zeros(len(cubes), 101)
    raw[:, :8] = made.distance[rows] / CLIP + 0.125
    raw[:, 53:] = made.attributes.clamp(1e-4, 1 - 1e-4).logit()[rows].flatten(1)
    terms = field_terms(made, raw, cubes, -0.125)
    assert {k: v for k, v in terms.items() if k != "sign" and v > 1e-3} == {}
    raw[:, :8] *= -1
    worse = field_terms(made, raw, cubes, -0.125)
    assert worse["sdf"] > 0.3
    assert worse["sign"] > 3 * terms["sign"]


def splats(centres: Tensor, colour: Tensor) -> Gaussians:
    n = len(centres)
    zeros = torch.zeros(n, 4)
    return Gaussians(
        centres + 0.5, (colour[:, None] - 0.5) / 0.28209479177387814, zeros[:, :3], zeros, 9 + zeros[:, :1]
    )


def test_gaussians_on_the_surface_in_its_colours_cost_nothing() -> None:
    draw = torch.Generator().manual_seed(3)
    places = torch.rand(16, 3, generator=draw) * 0.25 - 0.5
    base = crop()
    owner = torch.zeros(16, dtype=torch.int64)
    field = (base.corners, base.border, base.distance, base.attributes)
    one = Crop(base.coords[:1], base.features[:1], *field, places, places + 0.5, owner)
    exact = gaussian_terms(one, splats(places, places + 0.5), R)
    assert exact["chamfer"] < 1e-3
    assert exact["tint"] < 1e-3
    assert exact["faint"] < 0.2
    off = gaussian_terms(one, splats(places + torch.tensor([1.0, 0, 0]), places), R)
    assert off["chamfer"] == pytest.approx(R * sum(nearest_both_ways(places, 1.0)), rel=1e-4)
    assert off["tint"] > 0.5


def nearest_both_ways(places: Tensor, shift: float) -> tuple[float, float]:
    apart = np.linalg.norm((places.numpy()[:, None] + [shift, 0, 0]) - places.numpy()[None], axis=-1)
    return float(apart.min(1).mean()), float(apart.min(0).mean())


def shell() -> tuple[np.ndarray, np.ndarray]:
    """A cube of side 1 with a cube of side 0.5 hollowed out of it."""
    trimesh = pytest.importorskip("trimesh")
    outer, inner = trimesh.creation.box((1, 1, 1)), trimesh.creation.box((0.5,) * 3)
    faces = np.concatenate([outer.faces, inner.faces[:, ::-1] + 8])
    return np.concatenate([outer.vertices, inner.vertices]), faces


def test_hollows_are_left_out_and_holes_are_seen() -> None:
    vertices, faces = shell()
    kept = without_cavities(vertices, faces)
    assert len(kept) == 12
    assert kept.max() < 8
    assert watertight(faces)
    assert watertight(kept)
    assert not watertight(kept[1:])
    points, values = sample(vertices, vertices, kept, 4000)
    assert np.allclose(np.abs(points).max(1), 0.5)
    assert np.allclose(points, values)
    assert np.allclose((np.abs(points[:, 0]) > 0.4999).mean(), 1 / 3, atol=0.03)


def test_compare_measures_in_voxels() -> None:
    truth = target()
    found = compare(truth.points.double().numpy() + np.array([0, 0.02 / R, 0]), truth.shade.numpy(), truth, R)
    assert 0 < found["chamfer"] <= 0.02
    assert found["f_score"] == 1
    grey = compare(truth.points.double().numpy(), np.full((4000, 3), 0.5), truth, R)
    assert grey["colour_error"] == pytest.approx(float((truth.shade - 0.5).abs().mean()), rel=1e-5)


@pytest.fixture
def latents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreparedLatents:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    encoder = SLatEncoder(32, 11, 16, 4, 1, num_heads=2, mlp_ratio=1)
    torch.nn.init.normal_(encoder.out_layer.weight, std=0.1)
    save_model(encoder, tmp_path / "slat_encoder")
    made = PreparedLatents(PreparedLatentsConfig(encoder=tmp_path / "slat_encoder"), Backbone())
    made.set.arrays["split"][made.set.train[6:]] = 0  # six objects are enough
    return made


def test_latent_batches_are_packed_mirrored_and_repeatable(latents: PreparedLatents) -> None:
    assert len(latents) == 12 == len(latents.loads())
    first, again = (latents.batch([0, 1, 5], torch.Generator().manual_seed(2)) for _ in range(2))
    layout = first.layout
    assert isinstance(layout, Packed)
    assert layout.coords is not None
    assert layout.lengths.tolist() == [latents.loads()[i] for i in (0, 1, 5)]
    assert torch.equal(first.x0, again.x0)
    assert first.x0.shape == (len(layout.coords), 4)
    assert first.cond.tokens is not None
    assert again.cond.tokens is not None
    assert torch.equal(first.cond.tokens, again.cond.tokens)
    straight, mirrored = layout.coords.split(layout.lengths.tolist())[:2]
    assert {(31 - x, y, z) for x, y, z in straight.tolist()} == {tuple(c) for c in mirrored.tolist()}
    row = int(latents.set.train[0])
    coords, features = latents.set.surface(row, flip=True)
    alone = latents.encoder(features, Packed.of_lengths([len(coords)], coords.int()))
    assert torch.allclose(first.x0.split(layout.lengths.tolist())[1], alone, atol=1e-5)
    held = latents.held_out()
    assert held.layout.batch_size == 96
    assert torch.isfinite(held.x0).all()


def test_crops_are_parts_of_the_whole_objects(latents: PreparedLatents) -> None:
    cropped = PreparedLatents(latents.config.model_copy(update={"crop": 40}), Backbone())
    cropped.set.arrays["split"] = latents.set.arrays["split"]
    assert cropped.loads() == [min(count, 40) for count in latents.loads()]

    def by_object(data: PreparedLatents) -> list[dict[tuple[int, ...], Tensor]]:
        batch = data.batch([0, 3], torch.Generator().manual_seed(2))
        assert isinstance(batch.layout, Packed)
        assert batch.layout.coords is not None
        sizes = batch.layout.lengths.tolist()
        parts = zip(batch.layout.coords.split(sizes), batch.x0.split(sizes), strict=True)
        return [dict(zip(map(tuple, coords.tolist()), x0, strict=True)) for coords, x0 in parts]

    for part, whole in zip(by_object(cropped), by_object(latents), strict=True):
        assert 0 < len(part) <= 40 < len(whole)
        assert all(torch.equal(x0, whole[at]) for at, x0 in part.items())


def test_latents_are_normalised_by_the_description_beside_the_encoder(latents: PreparedLatents, tmp_path: Path) -> None:
    raw = latents.latents
    mean, std = channel_statistics(raw)
    write_pipeline(tmp_path, mean, std)
    found = Normalisation.beside(tmp_path / "slat_encoder")
    assert found is not None
    assert found.mean == tuple(mean)
    scaled = torch.cat([found.apply(z) for z in raw])
    assert torch.allclose(scaled.mean(0), torch.zeros(4), atol=1e-3)
    assert torch.allclose(scaled.std(0), torch.ones(4), atol=1e-3)
    assert torch.allclose(found.undo(found.apply(raw[0])), raw[0], atol=1e-5)
    params = json.loads((tmp_path / "pipeline.json").read_text())["args"]["slat_sampler"]["params"]
    assert params["cfg_strength"] == 2.0
    assert params["steps"] == 25


def test_missing_targets_are_one_error(tmp_path: Path) -> None:
    with pytest.raises(FewstepError, match="no targets of object 3; make them"):
        load_target(tmp_path, 3)
    for content in (b"", b"PK\x03\x04" + bytes(90)):
        (tmp_path / "00003.npz").write_bytes(content)
        with pytest.raises(FewstepError, match=r"00003\.npz: damaged .*delete it"):
            load_target(tmp_path, 3)


def test_layout_of_crops() -> None:
    layout = layout_of([crop(), crop()])
    assert layout.lengths.tolist() == [3, 3]
    assert layout.coords is not None
    assert torch.equal(layout.coords[:3], COORDS[[0, 1, 3]].int())
