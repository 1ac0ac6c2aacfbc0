"""``fewstep teach --stage decoder``: the structure decoder's further training on noisy latents."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from fewstep_shapes3d.data.prepared import PreparedSet
from fewstep_shapes3d.measures.occupancy import volume_iou
from fewstep_trellis.backbone import load_decoder
from fewstep_trellis.dataset import load_encoder
from fewstep_trellis.latents import encode
from fewstep_trellis.models import SparseStructureDecoder, SparseStructureEncoder
from fewstep_trellis.shipped import NANO
from fewstep_trellis.teach.decoder import DecoderConfig, train_decoder
from fewstep_trellis.teach.vae import VaeConfig, build, reconstruction
from torch import Tensor

Models = tuple[SparseStructureEncoder, SparseStructureDecoder]


@pytest.fixture(scope="module")
def data() -> PreparedSet:
    return PreparedSet.load()


def models() -> Models:
    encoder, decoder = build(VaeConfig(channels=(4, 8)))
    return encoder.eval().requires_grad_(False), decoder


def seen_noise(config: DecoderConfig, data: PreparedSet, state: Path, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """What the training adds to the latents, [steps, batch, ...]."""
    encoder, decoder = models()
    clean, seen = [], []

    def encode(self: SparseStructureEncoder, grid: Tensor) -> tuple[Tensor, Tensor]:
        found = original(self, grid)
        clean.append(found[0])
        return found

    original = SparseStructureEncoder.encode
    monkeypatch.setattr(SparseStructureEncoder, "encode", encode)
    decoder.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    train_decoder(config, encoder, decoder, data, state, lambda row: None)
    return torch.stack(seen) - torch.stack(clean)


def test_each_object_has_noise_of_its_own_deviation(
    data: PreparedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DecoderConfig(steps=20, batch_size=4, noise=0.8)
    noise = seen_noise(config, data, tmp_path, monkeypatch)
    deviations = noise.flatten(2).std(-1).flatten()  # 80 draws of |N(0, 0.8^2)|
    spread = 0.8 * math.sqrt((1 - 2 / math.pi) / len(deviations))
    assert deviations.mean() == pytest.approx(0.8 * math.sqrt(2 / math.pi), abs=3 * spread)
    assert deviations.square().mean() == pytest.approx(0.64, abs=3 * 0.64 * math.sqrt(2 / len(deviations)))
    assert noise.mean().abs() < 0.01


def test_without_noise_it_sees_the_latents_themselves(
    data: PreparedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = seen_noise(DecoderConfig(steps=2, batch_size=1, noise=0), data, tmp_path, monkeypatch)
    assert not noise.any()


def test_only_the_decoder_changes_and_an_interrupted_run_ends_where_an_unbroken_one_does(
    data: PreparedSet, tmp_path: Path
) -> None:
    config = DecoderConfig(steps=5, batch_size=1, checkpoint_every=2)

    def run(name: str, stop: int | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        def log(row: dict[str, float]) -> None:
            if row["step"] == stop:
                raise KeyboardInterrupt

        encoder, decoder = models()
        train_decoder(config, encoder, decoder, data, tmp_path / name, log)
        return encoder.state_dict(), decoder.state_dict()

    encoder, whole = run("whole")
    fresh_encoder, fresh_decoder = (model.state_dict() for model in models())
    assert all(torch.equal(encoder[name], fresh_encoder[name]) for name in encoder)
    assert not all(torch.equal(whole[name], fresh_decoder[name]) for name in whole)
    with pytest.raises(KeyboardInterrupt):
        run("part", stop=3)
    _, part = run("part")
    assert all(torch.equal(part[name], whole[name]) for name in whole)


def test_reconstruction_is_cross_entropy_and_dice() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 3, 3, 3, generator=generator, dtype=torch.float64)
    grid = (torch.rand(logits.shape, generator=generator) > 0.5).double()
    found = reconstruction(logits, grid)
    p = 1 / (1 + (-logits).exp())
    entropy = -(grid * p.log() + (1 - grid) * (1 - p).log()).mean()
    dice = [1 - (2 * (p[i] * grid[i]).sum() + 1) / (p[i].sum() + grid[i].sum() + 1) for i in range(2)]
    torch.testing.assert_close(found["bce"], entropy)
    torch.testing.assert_close(found["dice"], torch.stack(dice).mean())


def test_the_shipped_decoder_tolerates_noise(data: PreparedSet) -> None:
    encoder, decoder = load_encoder(NANO / "ss_encoder"), load_decoder(NANO / "ss_decoder")
    grid = data.occupancy(data.test[:16])
    latents = encode(encoder, grid)
    noise = 0.5 * torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        clean, noisy = (volume_iou(decoder(x) > 0, grid > 0).mean() for x in (latents, latents + noise))
    assert clean > 0.9
    assert noisy > 0.87  # 0.84 if the decoder has seen no noise
