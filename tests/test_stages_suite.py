"""The second stage's suite: true surfaces, distances by hand, meshes and files; both stages of TRELLIS in a bench."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fewstep_shapes3d.data.attributes import RANGE
from fewstep_shapes3d.data.surface import CENTRES
from fewstep_shapes3d.measures.held_out import SHEET_TILE
from fewstep_shapes3d.measures.surfaces import (
    NOTHING,
    Cloud,
    Surfaces,
    cloud_distance,
    cloud_of,
    latent_errors,
    true_cloud,
    view_error,
)
from fewstep_shapes3d.representations import Mesh
from fewstep_trellis.checkpoint import save_model
from fewstep_trellis.models import SLatEncoder, SLatFlowModel, SLatMeshDecoder
from fewstep_trellis.normalisation import Normalisation
from fewstep_trellis.slat import StructuredLatentFlow
from fewstep_trellis.slat_suite import StructuredLatentSuite
from PIL import Image
from slat_helpers import randomised, slat_batch
from torch import Tensor, nn

from fewstep.cli import main
from fewstep.core.batch import Batch
from fewstep.core.layout import Dense, Packed
from fewstep.errors import FewstepError
from fewstep.metrics import agreement

COUNT = 3


class Pool(nn.Module):
    """Features that a test can compute itself; counts its pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, pictures: Tensor) -> Tensor:
        self.seen += len(pictures)
        return nn.functional.adaptive_avg_pool2d(pictures, 4).flatten(1)


def mesh_decoder(channels: int = 3, resolution: int = 8) -> SLatMeshDecoder:
    sizes = {"resolution": resolution, "model_channels": 256, "latent_channels": channels, "num_blocks": 1}
    made = SLatMeshDecoder(**sizes, num_heads=4, representation_config={"use_color": True})
    return randomised(made, 2).eval().requires_grad_(False)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def decoder() -> SLatMeshDecoder:
    return mesh_decoder()


def suite(decoder: SLatMeshDecoder, **options: Any) -> StructuredLatentSuite:
    batch = slat_batch((20, 9, 30), dtype=torch.float32)
    draws = torch.Generator().manual_seed(8)
    truth = [Cloud(torch.rand(50, 3, generator=draws) - 0.5, torch.rand(50, 3, generator=draws)) for _ in range(COUNT)]
    pictures = [np.full((20, 20, 3), 30 * i, np.uint8) for i in range(COUNT)]
    return StructuredLatentSuite(batch, truth, pictures, decoder, **{"metric": Pool(), **options})


def other(tested: StructuredLatentSuite, seed: int = 1) -> Surfaces:
    x = torch.randn(tested.batch.x0.shape, generator=torch.Generator().manual_seed(seed))
    return tested.decode(x, tested.batch.layout)


class TestTruth:
    def features(self, coords: Tensor, distance: Any) -> Tensor:
        """As the prepared set has them: distances at the centres of the parts, and a colour of 0.75, 0.5, 0.25."""
        places = coords[:, None] + torch.from_numpy(CENTRES).float()
        codes = (distance(places).clamp(-RANGE, RANGE)) / RANGE
        return torch.cat([codes, torch.tensor([0.5, 0.0, -0.5]).expand(len(coords), 3)], 1)

    def test_points_lie_on_a_sphere(self) -> None:
        grid = torch.stack(torch.meshgrid(*[torch.arange(32)] * 3, indexing="ij"), -1).reshape(-1, 3)
        centre, radius = torch.tensor([16.0, 15.3, 16.6]), 9.4
        gap = (grid + 0.5 - centre).norm(dim=1) - radius
        coords = grid[gap.abs() < 0.4]
        found = true_cloud(coords, self.features(coords, lambda p: (p - centre).norm(dim=-1) - radius), 32)
        distance = ((found.points + 0.5) * 32 - centre).norm(dim=1) - radius
        assert len(coords) > 500
        assert float(distance.abs().max()) < 0.05  # of a voxel, whose centres are up to 0.4 away
        assert found.colours[0].tolist() == [0.75, 0.5, 0.25]

    def test_a_thin_sheet_stays_in_its_voxels(self) -> None:
        coords = torch.tensor([[3, 4, 5], [3, 5, 5]])
        found = true_cloud(coords, self.features(coords, lambda p: (p[..., 2] - 5.5).abs() - 0.1), 8)
        assert torch.allclose(found.points, (coords + 0.5) / 8 - 0.5)


class TestDistances:
    def sheet(self, z: float, colour: float, step: float = 0.1) -> Cloud:
        x, y = torch.meshgrid(torch.arange(5) * step, torch.arange(5) * step, indexing="ij")
        points = torch.stack([x, y, torch.full_like(x, z)], -1).reshape(-1, 3)
        return Cloud(points, torch.full_like(points, colour))

    def test_two_parallel_sheets(self) -> None:
        assert cloud_distance(self.sheet(0.1, 0.2), self.sheet(0.14, 0.5)) == pytest.approx((0.04, 0.3))
        few = Cloud(self.sheet(0.0, 0.5).points[:5], self.sheet(0.0, 0.5).colours[:5])  # one edge of the sheet
        back = (0 + 0.1 + 0.2 + 0.3 + 0.4) / 5
        assert cloud_distance(few, self.sheet(0.0, 0.5)) == pytest.approx((0.5 * back, 0.0), abs=1e-6)

    def test_an_empty_surface_is_the_diagonal_away(self) -> None:
        nothing = cloud_of(Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64)))
        assert cloud_distance(nothing, self.sheet(0, 0)) == (NOTHING, 1.0) == (math.sqrt(3), 1.0)
        assert cloud_distance(nothing, nothing) == (0.0, 0.0)

    def test_views_differ_where_either_shows_something(self) -> None:
        one = torch.full((2, 1, 3, 2, 2), 255, dtype=torch.uint8)
        two = one.clone()
        two[0, 0, :, 0, 0] = 0  # black instead of white in one pixel
        two[1, 0, 0, 0] = 155  # a little less red in two pixels
        assert view_error(two, one).tolist() == pytest.approx([1.0, 100 / 255 / 3])
        assert not view_error(one, one).any()

    def test_latents_agree_on_the_voxels_that_both_have(self, decoder: SLatMeshDecoder) -> None:
        coords = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 0, 0], [5, 5, 5]])
        mine = Surfaces([], torch.randn(4, 3), Packed.of_lengths([2, 2], coords), [], lambda x: x)
        order = torch.tensor([1, 0, 3])  # the first sample turned round, the second with its last voxel alone
        theirs = Surfaces([], torch.randn(3, 3), Packed.of_lengths([2, 1], coords[order]), [], lambda x: x)
        expected = agreement(mine.latents[[0, 1, 3]], theirs.latents[[1, 0, 2]])
        error, spread = latent_errors(mine, theirs)
        assert float(1 - error.sum() / spread.sum()) == pytest.approx(expected)
        assert float(error[1]) == pytest.approx(float((mine.latents[3] - theirs.latents[2]).square().sum()))
        far = Surfaces([], torch.randn(1, 3), Packed.of_lengths([1], torch.tensor([[9, 9, 9]])), [], lambda x: x)
        assert not torch.stack(latent_errors(mine, far)).any()


class TestSuite:
    def test_true_latents_are_perfect_and_others_are_not(self, decoder: SLatMeshDecoder) -> None:
        tested = suite(decoder)
        prompts = tested.prompts()
        perfect = tested.decode(prompts.x0, prompts.layout)
        got = tested.measure(perfect, perfect)
        zero = ("frechet", "kid", "view_error", "teacher_frechet", "teacher_view_error", "empty")
        assert [got[name] for name in zero] == pytest.approx([0.0] * 6, abs=1e-6)
        assert (got["precision"], got["recall"]) == (1.0, 1.0)
        assert got["agree_latent"] == 1.0
        worse = tested.measure(other(tested), perfect)
        assert worse["frechet"] > 1e-4
        assert worse["view_error"] == worse["teacher_view_error"] > 0.01
        assert worse["agree_latent"] < 0
        assert next(iter(got)) == tested.headline
        names = {name for name in got if "/" not in name}
        assert names - tested.lower_is_better == {"agree_latent", "precision", "recall"}

    def test_clouds_are_measured_against_the_true_surfaces(self, decoder: SLatMeshDecoder) -> None:
        tested = suite(decoder)
        made = other(tested)
        meshes = list(made.meshes)
        got = tested.measure(made, made)
        pairs = [cloud_distance(cloud_of(mesh), true) for mesh, true in zip(meshes, tested.truth, strict=True)]
        assert (got["chamfer"], got["colour_error"]) == pytest.approx(tuple(np.mean(pairs, 0)))
        assert made.meshes == []  # let go

    def test_a_limit_measures_against_as_many(self, decoder: SLatMeshDecoder) -> None:
        pool = Pool()
        tested = suite(decoder, metric=pool)
        batch = tested.prompts(2)
        assert batch.layout.batch_size == 2
        few = tested.decode(batch.x0, batch.layout)
        assert tested.measure(few, few)["view_error"] == 0.0
        assert pool.seen == 2 * 4 * 2  # the objects and the truth, four views each

    def test_normalised_latents_are_undone_before_decoding(self, decoder: SLatMeshDecoder) -> None:
        numbers = Normalisation(mean=(0.5, -1.0, 2.0), std=(2.0, 0.25, 1.5))
        plain, scaled = suite(decoder), suite(decoder, normalisation=numbers)
        x, layout = plain.batch.x0, plain.batch.layout
        (a, *_), (b, *_) = scaled.decode(x, layout).meshes, plain.decode(numbers.undo(x), layout).meshes
        assert torch.equal(a.vertices, b.vertices)
        assert not torch.equal(a.vertices, plain.decode(x, layout).meshes[0].vertices)

    def test_an_object_without_voxels_is_an_empty_mesh(self, decoder: SLatMeshDecoder) -> None:
        tested, batch = suite(decoder), slat_batch((20, 0, 30), dtype=torch.float32)
        made = tested.decode(batch.x0, batch.layout)
        assert [mesh.success for mesh in made.meshes] == [True, False, True]
        assert all(math.isfinite(value) for value in tested.measure(made, other(tested)).values())
        assert float(made.seen.views[1].float().mean()) == 255.0

    def test_the_sheet(self, decoder: SLatMeshDecoder, tmp_path: Path) -> None:
        tested = suite(decoder, azimuths=[10.0, 20.0, 30.0])
        tested.sheet([("teacher, 25 steps", other(tested)), ("b", other(tested, 2))], tmp_path / "s.png", 2)
        with Image.open(tmp_path / "s.png") as sheet:
            left = sheet.width - 2 * (SHEET_TILE + 4)
            tile = np.asarray(sheet.crop((left, sheet.height - SHEET_TILE - 4, left + SHEET_TILE, sheet.height - 4)))
        assert tile.std() > 5  # something is drawn

    def test_files(self, decoder: SLatMeshDecoder, tmp_path: Path) -> None:
        tested, batch = suite(decoder), slat_batch((20, 0, 9), dtype=torch.float32)
        made = tested.decode(batch.x0, batch.layout)
        files = tested.write(made, tmp_path / "folder")
        assert [file.name for file in files] == ["samples.png", "001.glb", "003.glb"]
        assert all(file.stat().st_size > 100 for file in files)
        assert tested.write(made, tmp_path / "one.png") == [tmp_path / "one.png"]
        with pytest.raises(FewstepError, match=r"--out.*ending in \.png"):
            tested.write(made, tmp_path / "one.obj")

    def test_what_it_refuses(self, decoder: SLatMeshDecoder) -> None:
        tested = suite(decoder)
        with pytest.raises(FewstepError, match="as many of each kind"):
            suite(decoder, azimuths=[0.0])
        with pytest.raises(FewstepError, match="decode returned"):
            tested.measure(torch.zeros(3), torch.zeros(3))
        with pytest.raises(FewstepError, match="layout: got 'Dense'"):
            tested.decode(tested.batch.x0, Dense(3))
        with pytest.raises(FewstepError, match="needs a structure too"):
            tested.prompt_from(Path("x.png"))
        plain = Batch(tested.batch.x0, tested.batch.layout)
        with pytest.raises(FewstepError, match="without image tokens"):
            StructuredLatentSuite(plain, tested.truth, tested.pictures, decoder)


def test_a_structure_is_followed_by_its_voxels() -> None:
    from fewstep_shapes3d.measures.shapes import Shapes
    from fewstep_trellis.suite import StructureSuite

    grids = torch.zeros(3, 4, 4, 4, dtype=torch.bool)
    grids[0, 1, 2, 3] = grids[0, 0, 3, 1] = grids[2, 3, 3, 3] = True
    shapes = Shapes(grids, torch.zeros(3, 1), lambda x: x)
    layout = StructureSuite.following(object.__new__(StructureSuite), shapes)
    assert layout.lengths.tolist() == [2, 0, 1]
    assert layout.coords is not None
    assert layout.coords.tolist() == [[0, 3, 1], [1, 2, 3], [3, 3, 3]]


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny random models of the second stage for the shipped set, with a pipeline.json."""
    folder = tmp_path_factory.mktemp("slat")
    torch.manual_seed(0)
    numbers = {"mean": [0.1] * 4, "std": [1.5] * 4}
    encoder = {"resolution": 32, "in_channels": 11, "model_channels": 16, "latent_channels": 4, "num_blocks": 1}
    sizes = {"resolution": 32, "in_channels": 4, "out_channels": 4, "model_channels": 16, "cond_channels": 64}
    flow = SLatFlowModel(**sizes, num_blocks=1, num_heads=2, io_block_channels=[8], num_io_res_blocks=1)
    save_model(randomised(SLatEncoder(**encoder, num_heads=2), 1), folder / "slat_encoder")
    save_model(randomised(flow, 2), folder / "slat_flow")
    save_model(mesh_decoder(4, 32), folder / "slat_decoder_mesh")
    (folder / "pipeline.json").write_text(json.dumps({"args": {"slat_normalization": numbers}}))
    return folder


def keys(folder: Path, prefix: str = "") -> list[str]:
    places = {"backbone.teacher": "slat_flow", "backbone.decoder": "slat_decoder_mesh", "data.encoder": "slat_encoder"}
    return [f"{prefix}{key}={folder / name}" for key, name in places.items()]


@pytest.mark.slow
def test_both_stages_of_trellis_in_one_bench(
    latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shipped structure flow and a random second stage on two held-out pictures: plumbing, not quality."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(StructuredLatentFlow, "students", classmethod(lambda cls: {}))  # the shipped ones do not fit
    arguments = ["bench", "-b", "trellis", "--stage", "both", "--steps", "2", "--seeds", "0", "--limit", "2"]
    code = main([*arguments, "--out", "b", "teacher_steps=2", "threads=1", *keys(latents, "slat.")])
    assert code == 0, capsys.readouterr().err
    with Path("b/rows.csv").open() as file:
        rows = {(row["label"], row["metric"]): float(row["value"]) for row in csv.DictReader(file)}
    parts = ["condition", "flow_ss", "decode_ss", "flow_slat", "decode_slat"]
    assert all(rows["teacher", f"seconds_{part}"] > 0 for part in parts)
    assert 0 < rows["teacher", "chamfer"] < 0.5
    assert rows["teacher", "teacher_view_error"] == rows["truth, decoded", "view_error"] == 0.0
    assert Path("b/sheet.png").stat().st_size > 1000
