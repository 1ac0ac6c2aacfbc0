"""TRELLIS.2's picture preparation pixel by pixel, and DINOv3's tokens before its last norm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fewstep_trellis.conditioning import hub
from fewstep_trellis2.conditioning import DinoV3Conditioner, image_conditioner
from PIL import Image

from fewstep.errors import FewstepError

WIDTH = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random DINOv3 in transformers' format, whose last norm is not the identity."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    torch.manual_seed(0)
    config = DINOv3ViTConfig(
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        patch_size=16,
        num_register_tokens=4,
        image_size=32,
    )
    model = DINOv3ViTModel(config)
    torch.nn.init.normal_(model.norm.weight)
    torch.nn.init.normal_(model.norm.bias)
    path = tmp_path_factory.mktemp("dino")
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize("size", [32, 64])
def test_tokens_are_those_before_the_last_norm(folder: Path, size: int) -> None:
    from transformers import DINOv3ViTModel

    encoder = image_conditioner(folder)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
    tokens = encoder.encode([picture], size)
    assert tokens.shape == (1, 1 + 4 + (size // 16) ** 2, WIDTH)

    model = DINOv3ViTModel.from_pretrained(folder).eval()
    stretched = np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS)).astype(np.float32) / 255
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    values = torch.from_numpy((stretched - mean) / std).float().permute(2, 0, 1)[None]
    kept = []
    model.norm.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    with torch.no_grad():
        normed = model(values).last_hidden_state
    (before,) = kept
    wanted = (before - before.mean(-1, keepdim=True)) / (before.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(tokens, wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(tokens, normed, atol=0.1)


def test_sides_that_are_no_multiples_of_the_patch(folder: Path) -> None:
    with pytest.raises(FewstepError, match="multiples of 16"):
        image_conditioner(folder)(torch.zeros(1, 3, 40, 32))


def plain_preparation(rgba: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """The square around the opaque pixels without a margin, times alpha, cut to 8 bits."""
    rows, columns = np.nonzero(rgba[..., 3] > 204)
    top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
    half = max(bottom - top, right - left) // 2
    y, x = round((top + bottom) / 2 - half), round((left + right) / 2 - half)
    square = np.zeros((2 * half, 2 * half, 4), np.float32)
    for i in range(2 * half):
        for j in range(2 * half):
            if 0 <= y + i < rgba.shape[0] and 0 <= x + j < rgba.shape[1]:
                square[i, j] = rgba[y + i, x + j] / np.float32(255)
    found: np.ndarray = (square[..., :3] * square[..., 3:] * 255).astype(np.uint8)  # type: ignore[type-arg]
    return found


def test_preparation_pixel_by_pixel() -> None:
    draw = np.random.default_rng(1)
    rgba = draw.integers(0, 256, (40, 60, 4), np.uint8)
    rgba[..., 3] = 0
    rgba[3:30, 5:50, 3] = draw.integers(100, 256, (27, 45), np.uint8)
    found = np.asarray(DinoV3Conditioner.prepare(Image.fromarray(rgba, "RGBA")))
    np.testing.assert_array_equal(found, plain_preparation(rgba))


def test_a_large_picture_is_made_smaller_first() -> None:
    rgba = np.zeros((1400, 2000, 4), np.uint8)
    rgba[100:1300, 200:1800] = 255
    found = DinoV3Conditioner.prepare(Image.fromarray(rgba, "RGBA"))
    assert found.size[0] == found.size[1]
    assert 815 <= found.size[0] <= 822  # 1600 pixels of 2000 become 819 of 1024


def test_gated_weights_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    name = "facebook/dinov3-vitl16-pretrain-lvd1689m"
    with pytest.raises(
        FewstepError, match=r"gated: accept the licence at https://huggingface.co/facebook/dinov3"
    ) as error:
        image_conditioner(name)
    assert "hf auth login" in str(error.value)
    assert "--image-encoder DIR" in str(error.value)


def test_what_is_no_encoder(tmp_path: Path) -> None:
    with pytest.raises(FewstepError, match=r"--image-encoder: got 'nothing'; accepted: a folder"):
        image_conditioner("nothing")
    (tmp_path / hub.CONFIG).write_text('{"model_type": "dinov2"}')
    with pytest.raises(FewstepError, match="a model of type dinov3_vit; this one is 'dinov2'"):
        image_conditioner(tmp_path)
