"""Encoders by name: spelling, the hub out of reach, and the nano models' own encoder."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fewstep_shapes3d.data.prepared import PreparedSet
from fewstep_shapes3d.measures.features import ImageEncoder, preprocess
from fewstep_trellis.conditioning import image_conditioner, load_picture, text_conditioner
from fewstep_trellis.conditioning.efficientnet import EfficientNetConditioner
from PIL import Image

from fewstep.errors import FewstepError


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none"))
    monkeypatch.setattr("fewstep_trellis.conditioning.factory.get_dir", lambda: str(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dinov2_vitl14_rge", "unknown image encoder 'dinov2_vitl14_rge'.*did you mean 'dinov2_vitl14_reg'"),
        ("efficientnet-lite1", "accepted are .*efficientnet-lite0.*did you mean 'efficientnet-lite0'"),
        ("./weights/dino.pth", "existing folder or file"),
        ("weights/dino.pth", "existing folder or file"),
        ("zzz", "--image-encoder: unknown image encoder 'zzz'"),
    ],
)
def test_names_that_are_none(name: str, message: str) -> None:
    with pytest.raises(FewstepError, match=message):
        image_conditioner(name)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("dinov2_vitl14_reg", "facebook/dinov2-with-registers-large"),
        ("dinov2_vits14_reg", "facebook/dinov2-with-registers-small"),
        ("somebody/else", "somebody/else"),
    ],
)
def test_without_a_network_the_error_says_how_to_give_a_folder(name: str, repository: str) -> None:
    message = f"image encoder '{repository}' could not be downloaded and is not in the cache.*--image-encoder DIR$"
    with pytest.raises(FewstepError, match=message):
        image_conditioner(name)


@pytest.mark.usefixtures("offline")
def test_a_repository_that_is_nearly_the_right_one() -> None:
    with pytest.raises(FewstepError, match="--text-encoder DIR; did you mean 'openai/clip-vit-large-patch14'"):
        text_conditioner("openai/clip-vit-large-patch41")
    with pytest.raises(FewstepError, match=r"'openai/clip-vit-large-patch14' could not.*--text-encoder DIR$"):
        text_conditioner()
    with pytest.raises(FewstepError, match="unknown text encoder 'clip-large'"):
        text_conditioner("clip-large")


def chair(background: int = 0) -> Image.Image:
    pixels = np.full((80, 80, 4), background, np.uint8)
    pixels[20:70, 30:60] = (180, 120, 60, 255)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def nano() -> EfficientNetConditioner:
    found = image_conditioner("efficientnet-lite0")
    assert isinstance(found, EfficientNetConditioner)
    return found


def test_the_nano_encoder_makes_the_tokens_of_the_shipped_set(nano: EfficientNetConditioner, tmp_path: Path) -> None:
    data = PreparedSet.load()
    chair().save(tmp_path / "chair.png")
    picture = nano.prepare(load_picture(tmp_path / "chair.png"))
    assert (np.asarray(picture) == preprocess(chair())).all()
    tokens = nano.encode([picture, picture.resize((112, 112))])
    assert tokens.shape == (2, 49, data.channels)
    assert nano.channels == data.channels
    assert torch.allclose(tokens[0], ImageEncoder(data.basis()).encode_files([tmp_path / "chair.png"])[0], atol=1e-5)
    assert (tokens[0] - tokens[1]).abs().mean() < 0.3 * tokens[0].abs().mean(), "a smaller copy says about the same"
    assert nano.negative(1) is None


def test_a_picture_on_black_is_used_whole_and_a_photograph_needs_rembg(
    nano: EfficientNetConditioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rembg", None)
    black = Image.new("RGB", (112, 112))
    black.paste((180, 120, 60), (40, 20, 70, 90))
    assert (np.asarray(nano.prepare(black)) == preprocess(black)).all()
    grey = Image.new("RGB", (112, 112), (128, 128, 128))
    with pytest.raises(FewstepError, match=r"photo\.jpg has no transparency.*pip install"):
        nano.prepare(grey, "photo.jpg")
    assert (np.asarray(nano.prepare(grey, background="keep")) == 128).all()


def test_another_set_has_another_basis(tmp_path: Path) -> None:
    with pytest.raises(FewstepError, match="no folder"):
        image_conditioner("efficientnet-lite0", data=tmp_path / "none")
