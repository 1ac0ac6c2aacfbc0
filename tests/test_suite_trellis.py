"""The structure suite on tiny random parts: values against direct computation, views, sheets and files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fewstep_shapes3d.export.contact import SPACE
from fewstep_shapes3d.measures.held_out import SHEET_TILE, HeldOut, from_best_to_worst
from fewstep_shapes3d.measures.occupancy import chamfer, volume_iou
from fewstep_shapes3d.measures.shapes import Shapes, ViewEncoder, distances
from fewstep_shapes3d.voxel_render import AZIMUTHS, render_views
from fewstep_trellis.models import SparseStructureDecoder
from fewstep_trellis.suite import TILE, StructureSuite
from PIL import Image
from torch import Tensor, nn

from fewstep.core.layout import Dense
from fewstep.errors import FewstepError
from fewstep.metrics import agreement, frechet, kid, precision_recall

COUNT, RESOLUTION = 6, 8


class Pool(nn.Module):
    """Features that a test can compute itself: means of 6 x 6 patches. Counts its pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, pictures: Tensor) -> Tensor:
        self.seen += len(pictures)
        return nn.functional.adaptive_avg_pool2d(pictures, 6).flatten(1)


class Conditions(nn.Module):
    """Stands for the image encoder: tokens are patch means."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.shapes.append(tuple(images.shape))
        return nn.functional.adaptive_avg_pool2d(images, 2).flatten(2).transpose(1, 2)

    def encode(self, pictures: list[Any]) -> Tensor:
        return self(torch.stack([torch.from_numpy(np.array(one)).permute(2, 0, 1) for one in pictures]).float() / 255)


def decoder() -> SparseStructureDecoder:
    torch.manual_seed(0)
    made = SparseStructureDecoder(1, 2, 1, [8, 4], 1).eval().requires_grad_(False)
    nn.init.normal_(made.out_layer[-1].weight)  # zero-initialised weights would decode to nothing
    return made


def blobs(seed: int) -> Tensor:
    noise = torch.randn(COUNT, 1, RESOLUTION, RESOLUTION, RESOLUTION, generator=torch.Generator().manual_seed(seed))
    return (nn.functional.avg_pool3d(noise, 3, 1, 1)[:, 0] > 0.2).float()


def suite(**options: Any) -> StructureSuite:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(COUNT, 2, 4, 4, 4, generator=generator)
    tokens = torch.randn(COUNT, 4, 3, generator=generator)
    pictures = [np.full((20, 20, 3), 30 * i, np.uint8) for i in range(COUNT)]
    options = {"encoder": Conditions(), "metric": Pool(), **options}
    return StructureSuite(blobs(1), lambda count: latents[:count], tokens, pictures, decoder(), **options)


def shapes(tested: StructureSuite, seed: int) -> Shapes:
    x = torch.randn(tested.x0(COUNT).shape, generator=torch.Generator().manual_seed(seed))
    return tested.decode(x, Dense(COUNT))


def test_prompts_are_the_first_ones_in_a_fixed_order() -> None:
    tested = suite()
    batch, few = tested.prompts(), tested.prompts(2)
    assert batch.layout.batch_size == COUNT
    assert torch.equal(few.x0, batch.x0[:2])
    assert few.cond.tokens is not None
    assert torch.equal(few.cond.tokens, tested.tokens[:2])


def test_decoding_in_chunks_is_decoding_at_once() -> None:
    tested = suite()
    found = shapes(tested, 0)
    assert torch.equal(found.grids, tested.decoder(found.latents)[:, 0] > 0)
    assert 0 < found.grids.float().mean() < 1


def test_measures_are_those_of_the_functions() -> None:
    tested = suite()
    one, teacher = shapes(tested, 0), shapes(tested, 1)
    got = tested.measure(one, teacher)
    truth = tested.truth

    def features(grids: Tensor) -> Tensor:
        return torch.stack([Pool()(render_views(grids, [a], size=96)[:, 0]) for a in AZIMUTHS], 1)

    mine, true, theirs = (features(grids) for grids in (one.grids, truth, teacher.grids))
    expected = {
        "frechet": frechet(mine.flatten(0, 1), true.flatten(0, 1)),
        "kid": kid(mine.flatten(1), true.flatten(1), paired=True),
        "teacher_frechet": frechet(mine.flatten(0, 1), theirs.flatten(0, 1)),
        "iou": float(volume_iou(one.grids, truth).mean()),
        "chamfer": float(chamfer(one.grids, truth).mean()),
        "agree_iou": float(volume_iou(one.grids, teacher.grids).mean()),
        "agree_latent": agreement(one.latents, teacher.latents),
    }
    expected["precision"], expected["recall"] = precision_recall(mine.flatten(1), true.flatten(1))
    for name, values in {"iou": volume_iou(one.grids, truth), "chamfer": chamfer(one.grids, truth)}.items():
        tails = {"median": 50, "p05": 5, "p95": 95}
        expected |= {f"{name}/{tail}": np.percentile(values, at) for tail, at in tails.items()}
    assert {name: got[name] for name in expected} == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert got["empty"] == float((~one.grids.flatten(1).any(1)).float().mean())
    assert next(iter(got)) == tested.headline
    names = {name for name in got if "/" not in name}
    assert names - tested.lower_is_better == {"iou", "agree_iou", "agree_latent", "precision", "recall"}


def test_the_teacher_agrees_with_itself() -> None:
    tested = suite()
    teacher = shapes(tested, 1)
    got = tested.measure(teacher, teacher)
    assert (got["agree_iou"], got["agree_latent"]) == (1.0, 1.0)
    assert got["teacher_frechet"] == pytest.approx(0.0, abs=1e-9)


def test_true_objects_are_perfect() -> None:
    tested = suite()
    perfect = Shapes(tested.truth, tested.x0(COUNT), tested.views)
    got = tested.measure(perfect, perfect)
    assert (got["iou"], got["chamfer"]) == (1.0, 0.0)
    assert (got["frechet"], got["kid"]) == pytest.approx((0.0, 0.0), abs=1e-9)


def test_objects_in_the_wrong_order_are_caught_by_what_is_paired() -> None:
    """The same set of true objects under each other's pictures: the distributions agree, the pairs do not."""
    tested = suite()
    mixed = Shapes(tested.truth.roll(1, 0), tested.x0(COUNT).roll(1, 0), tested.views)
    got = tested.measure(mixed, mixed)
    assert got["frechet"] == pytest.approx(0, abs=1e-9)
    assert got["iou"] < 0.7
    assert got["chamfer"] > 0


def test_features_are_made_once_for_each_set_of_objects() -> None:
    tested, pool = suite(), Pool()
    tested.views = ViewEncoder(pool)
    one, teacher = shapes(tested, 0), shapes(tested, 1)
    tested.measure(teacher, teacher)
    assert pool.seen == 2 * 4 * COUNT  # the teacher's and the truth's
    tested.measure(one, teacher)
    tested.measure(one, teacher)
    assert pool.seen == 3 * 4 * COUNT


def test_a_limit_measures_against_as_many_true_objects() -> None:
    tested = suite()
    few = tested.decode(tested.prompts(3).x0, Dense(3))
    whole = shapes(tested, 0)
    tested.measure(whole, whole)
    got = tested.measure(few, few)
    assert got["iou"] == pytest.approx(float(volume_iou(few.grids, tested.truth[:3]).mean()))
    once = torch.ones(1, 3, dtype=torch.float64)
    assert got["frechet"] == float(distances(few.features, tested.views(tested.truth[:3]), once)["frechet"])


def test_condition_encodes_pictures_at_the_encoder_s_size() -> None:
    encoder = Conditions()
    tested = suite(encoder=encoder)
    tested.condition(2)
    assert encoder.shapes == [(2, 3, 224, 224)]
    suite(encoder=None).condition(2)


def test_a_prompt_from_a_picture(tmp_path: Path) -> None:
    image = Image.new("RGB", (32, 32), (255, 0, 0))
    image.putpixel((0, 0), (0, 0, 0))
    image.save(tmp_path / "red.png")
    with pytest.raises(FewstepError, match="--background keep"):
        suite().prompt_from(tmp_path / "red.png")
    batch = suite().prompt_from(tmp_path / "red.png", "keep")
    assert batch.x0.shape == (1, 2, 4, 4, 4)
    assert batch.cond.tokens is not None
    assert batch.cond.tokens[0, 3].tolist() == [1.0, 0.0, 0.0]
    with pytest.raises(FewstepError, match="takes no image"):
        suite(encoder=None).prompt_from(tmp_path / "red.png")


def test_the_sheet_has_pictures_truth_and_a_row_each_from_best_to_worst(tmp_path: Path) -> None:
    tested = suite(azimuths=[10.0 * i for i in range(COUNT)])
    grids = tested.truth.clone()
    grids[1] = False  # the second object is not met at all, the others are
    objects = Shapes(grids, torch.zeros(COUNT, 1), tested.views)
    assert tested.closeness(objects).tolist() == [float(i != 1) for i in range(COUNT)]
    tested.sheet([("teacher, 25 steps", objects), ("b", objects)], tmp_path / "s.png", 3)
    chosen = from_best_to_worst(tested.closeness(objects), 3)
    assert (chosen[0], chosen[-1]) == (0, 1)
    with Image.open(tmp_path / "s.png") as sheet:
        left, top = sheet.width - 3 * (SHEET_TILE + 4), sheet.height - 4 * (SHEET_TILE + 4) - 2 * SPACE
        middle = [left + SHEET_TILE // 2 + column * (SHEET_TILE + 4) for column in range(3)]
        given = [sheet.getpixel((x, top + SHEET_TILE // 2)) for x in middle]
        assert given == [tuple(tested.pictures[one][0, 0]) for one in chosen]
        last = np.asarray(sheet.convert("L"))[-SHEET_TILE - 4 :]
        drawn = [float((last[:, x - 40 : x + 40] < 200).mean()) for x in middle]
    assert drawn[0] > 0.1
    assert 0 < drawn[2] < 0.05  # not met: only the word "nothing"


def test_files_of_samples(tmp_path: Path) -> None:
    tested = suite()
    found = shapes(tested, 0)
    files = tested.write(found, tmp_path / "folder")
    assert [file.name for file in files] == ["samples.png", "samples.npz"]
    assert np.array_equal(np.load(files[1])["occupancy"], found.grids.numpy())
    assert tested.write(found, tmp_path / "one.png") == [tmp_path / "one.png"]
    assert tested.write(found, tmp_path / "run_1.0")[0] == tmp_path / "run_1.0" / "samples.png"
    tested.write(found, tmp_path / "seen.png", tested.prompts())
    with Image.open(tmp_path / "one.png") as plain, Image.open(tmp_path / "seen.png") as seen:
        assert seen.width == plain.width + TILE + 4
        row, left = 4 + TILE + 4 + TILE // 2, plain.width - 4 * (TILE + 4)
        assert seen.getpixel((left + TILE // 2, row)) == (30, 30, 30), "the second picture, before its object"
    with pytest.raises(FewstepError, match=r"--out.*png.*npz"):
        tested.write(found, tmp_path / "one.obj")


def test_arguments_that_do_not_fit() -> None:
    with pytest.raises(FewstepError, match="as many of each kind"):
        suite(azimuths=[0.0])
    with pytest.raises(FewstepError, match="decode returned"):
        suite().measure(torch.zeros(3), torch.zeros(3))
    lone: Any = SimpleNamespace(test=np.arange(1), folder=Path("lone"))
    with pytest.raises(FewstepError, match=r"data\.root: got 'lone'; .*at least 2 held-out objects; this one has 1"):
        HeldOut.of(lone)


def test_measures_separate_noise_from_shapes_with_the_real_encoder() -> None:
    """Deliberate failure on shipped data: true objects with a tenth of the cells flipped at random must cost plainly
    more than another third of the true objects does, in Frechet distance and in KID."""
    from fewstep_shapes3d.data.prepared import PreparedSet

    prepared = PreparedSet.load()
    truth = prepared.occupancy(prepared.test)[:, 0] > 0
    third, rest = truth[::3], truth[1::3]
    flips = torch.rand(third.shape, generator=torch.Generator().manual_seed(0)) < 0.1
    views = ViewEncoder()
    reference, other, noisy = views(third), views(rest), views(third ^ flips)
    once = torch.ones(1, 32, dtype=torch.float64)
    honest, bad = distances(other, reference, once), distances(noisy, reference, once)
    assert honest["recall"] > bad["recall"]
    assert reference.shape == (32, 4, 1280)
    assert bad["frechet"] > 3 * honest["frechet"]
    assert bad["kid"] > 3 * abs(honest["kid"])
