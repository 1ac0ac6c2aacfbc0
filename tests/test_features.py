"""Image preparation, the token basis and both encoders."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from fewstep_shapes3d.data.prepared import PreparedSet
from fewstep_shapes3d.measures.features import (
    ImageEncoder,
    MetricEncoder,
    fit_basis,
    preprocess,
    tile_colours,
    with_positions,
)
from fewstep_shapes3d.pictures.loading import load_picture
from PIL import Image

from fewstep.errors import FewstepError

GOLDEN = Path(os.environ.get("FEWSTEP_GOLDEN", Path(__file__).parent / "golden" / "data")) / "pipeline"


def disc(size: int = 100, centre: tuple[int, int] = (30, 60), radius: int = 20) -> Image.Image:
    rows, columns = np.mgrid[:size, :size]
    inside = (columns - centre[0]) ** 2 + (rows - centre[1]) ** 2 <= radius**2
    pixels = np.zeros((size, size, 4), np.uint8)
    pixels[..., 0], pixels[..., 3] = 200, inside * 255
    return Image.fromarray(pixels)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="no golden data here (FEWSTEP_GOLDEN)")
def test_preparation_equals_the_reference_bit_for_bit() -> None:
    with Image.open(GOLDEN / "preprocess_a_out.png") as out:
        expected = np.asarray(out.convert("RGB"))
    assert (preprocess(load_picture(GOLDEN / "preprocess_a_in.png"), size=expected.shape[0]) == expected).all()


def test_the_object_is_centred_with_a_margin() -> None:
    picture = preprocess(disc(), size=240)
    rows, columns = np.nonzero(picture[..., 0] > 100)
    assert (rows.min() + rows.max()) / 2 == pytest.approx(119.5, abs=3)
    assert (columns.min() + columns.max()) / 2 == pytest.approx(119.5, abs=3)
    assert np.ptp(columns) == pytest.approx(240 / 1.2, abs=6)
    assert not picture[..., 1:].any()
    assert not picture[0, 0].any(), "black around the object"


def test_a_picture_without_alpha_is_used_whole() -> None:
    wide = Image.new("RGB", (100, 50), (10, 200, 30))
    picture = preprocess(wide, size=100)
    assert (picture[30:70] == (10, 200, 30)).all()
    assert not picture[:20].any(), "padded to a square with black"
    assert not picture[80:].any()


def test_flipping_commutes_with_preparation() -> None:
    image = disc(101, (30, 60), 20)
    flipped = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    difference = preprocess(image).astype(int) - preprocess(flipped)[:, ::-1]
    assert np.abs(difference).mean() < 3


def test_a_transparent_picture_is_refused() -> None:
    with pytest.raises(FewstepError, match=r"ghost\.png.*transparent everywhere"):
        preprocess(Image.new("RGBA", (20, 20)), "ghost.png")


def test_the_basis_is_orthogonal_centred_and_of_unit_size() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2000, 6, generator=generator) * torch.tensor([5.0, 3, 2, 1, 1, 1])
    deep = hidden @ torch.randn(6, 40, generator=generator) + 3 + 0.01 * torch.randn(2000, 40, generator=generator)
    colours = hidden[:, :4] * torch.tensor([0.1, 0.2, 0.3, 0.4]) + 0.5
    tokens = torch.cat([deep, colours], 1)
    coded = fit_basis(tokens, 10)(tokens)
    leading, last = coded[:, :6], coded[:, 6:]
    assert leading.square().mean().sqrt() == pytest.approx(1, abs=0.01)
    assert coded.mean(0).abs().max() < 0.01
    covariance = leading.T @ leading / len(leading)
    assert (covariance - covariance.diag().diag()).abs().max() < 0.01
    assert covariance.diag().diff().max() <= 1e-3, "largest first"
    assert torch.allclose(last, (colours - colours.mean(0)) / colours.std(0), atol=5e-3), "colours keep their channels"
    whole = fit_basis(tokens, 44)(tokens)[:, :40]
    assert (whole[:, 6:].square().sum() / whole.square().sum()) < 1e-3, "six directions hold everything"
    for channels in (4, 45):
        with pytest.raises(FewstepError, match=f"channels: got {channels}; accepted: 5 to 44, 4 of them for colours"):
            fit_basis(tokens, channels)


def test_tiles_tell_the_colour_of_what_they_show() -> None:
    picture = torch.zeros(1, 3, 224, 224)
    picture[0, :, :32, :32] = torch.tensor([0.8, 0.4, 0.2])[:, None, None]  # the first tile is full
    picture[0, 2, :32, 32:48] = 0.6  # the second one half
    tiles = tile_colours(picture)[0]
    assert torch.allclose(tiles[0], torch.tensor([0.8, 0.4, 0.2, 1.0]))
    assert torch.allclose(tiles[1], torch.tensor([0.0, 0.0, 0.6, 0.5]))
    assert not tiles[2:].any()


def test_a_token_says_where_its_tile_is() -> None:
    tokens = torch.randn(2, 49, 5, generator=torch.Generator().manual_seed(0))
    found = with_positions(tokens).view(2, 7, 7, 17)
    assert torch.equal(found[..., :5], tokens.view(2, 7, 7, 5))
    for k in range(1, 7):
        for tile in range(7):
            wave = pytest.approx(math.cos(math.pi * k * (tile + 0.5) / 7), abs=1e-6)
            assert found[0, tile, 3, 4 + k].item() == wave, "rows"
            assert found[1, 2, tile, 10 + k].item() == wave, "columns"
    between = torch.cdist(found[0, ..., 5:].flatten(0, 1), found[0, ..., 5:].flatten(0, 1))
    assert (between + torch.eye(49) * 9).min() > 1, "no two tiles are close"


def test_tokens_and_metric_features_differ_between_objects(tmp_path: Path) -> None:
    disc().save(tmp_path / "a.png")
    Image.new("RGB", (64, 64), (90, 20, 160)).save(tmp_path / "b.jpg")
    encoder = ImageEncoder()
    tokens = encoder.encode_files([tmp_path / "a.png", tmp_path / "b.jpg"])
    assert tokens.shape == (2, 49, 1284)
    assert (tokens[0] - tokens[1]).abs().mean() > 0.05
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    based = ImageEncoder(fit_basis(tokens, 8)).encode_files([tmp_path / "a.png"])
    assert torch.allclose(based[0], with_positions(fit_basis(tokens, 8)(tokens[0])), atol=1e-3)


def test_metric_features_take_grey_and_colour() -> None:
    encoder = MetricEncoder()
    grey = torch.rand(2, 50, 50, generator=torch.Generator().manual_seed(0))
    features = encoder(grey)
    assert features.shape == (2, 1280)
    assert torch.allclose(features, encoder(grey[:, None].repeat(1, 3, 1, 1)), atol=1e-5)
    with pytest.raises(FewstepError, match=r"images.*\[N,H,W\]"):
        encoder(torch.zeros(50, 50))


def test_stored_tokens_are_what_the_encoder_makes_of_the_picture() -> None:
    """The shipped atlas holds small copies of the condition pictures: their tokens stay close to the stored ones."""
    data = PreparedSet.load()
    index = data.test[:6]
    small = [Image.fromarray(data.picture(int(i))).resize((224, 224), Image.Resampling.BICUBIC) for i in index]
    again = ImageEncoder(data.basis()).encode([np.asarray(picture) for picture in small]).flatten(1)
    stored = data.tokens(index).flatten(1)
    likeness = torch.nn.functional.normalize(again, dim=1) @ torch.nn.functional.normalize(stored, dim=1).T
    assert (likeness.argmax(1) == torch.arange(6)).all()
    assert likeness.diag().min() > 0.4


def test_pictures_are_encoded_on_the_encoders_device() -> None:
    encoder = ImageEncoder().to("meta")  # as good as a GPU: a picture left on the CPU would be refused
    assert encoder.encode([preprocess(disc())]).device.type == "meta"


def test_the_condition_tells_the_colour_of_an_object() -> None:
    """A linear map, fitted on the training objects, from the mean token to the mean colour of the voxels."""
    data = PreparedSet.load()
    colours = torch.stack([data.surface(at)[1][:, 8:].mean(0) for at in range(len(data))])
    rows = torch.cat([data.tokens(part).mean(1) for part in (data.train, data.test)])
    wanted = torch.cat([colours[part] for part in (data.train, data.test)])

    def explained(features: torch.Tensor) -> float:
        known, count = torch.cat([features, torch.ones(len(features), 1)], 1), len(data.train)
        gram = known[:count].T @ known[:count] + 1e-2 * count * torch.eye(known.shape[1])
        fitted = known[count:] @ torch.linalg.solve(gram, known[:count].T @ wanted[:count])
        left, spread = (wanted[count:] - fitted), wanted[count:] - wanted[count:].mean(0)
        return 1 - float(left.square().sum() / spread.square().sum())

    assert explained(rows) > 0.7
    assert explained(rows[:, :48]) < 0.2, "the deep features alone"
