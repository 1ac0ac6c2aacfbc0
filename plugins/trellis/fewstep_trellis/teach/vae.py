"""The structure VAE: occupancy [B, 1, R, R, R] to latents and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import torch
import torch.nn.functional as F
from fewstep_shapes3d.data.prepared import PreparedSet
from fewstep_shapes3d.measures.occupancy import volume_iou
from pydantic import Field
from torch import Tensor, nn

from fewstep.engine.device import emulates_bf16
from fewstep_trellis.checkpoint import save_model
from fewstep_trellis.models import SparseStructureDecoder, SparseStructureEncoder
from fewstep_trellis.teach.loop import Log, Loop, LoopConfig

WEIGHTS = {"bce": 10.0, "dice": 1.0}
FIRST_DECODER = "ss_vae_decoder"
NOISE = 0.5  # standard deviation on the latents, whose own is 1, in ``quality``


class VaeConfig(LoopConfig):
    """Recipe of the structure VAE."""

    channels: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        (16, 32, 48), min_length=1, description="width of the encoder's stages, finest first"
    )
    latent_channels: int = Field(8, gt=0, description="channels of the latents")
    steps: int = Field(1500, gt=0, description="optimiser steps")
    batch_size: int = Field(4, gt=0, description="grids per step")
    kl: float = Field(2e-3, ge=0, description="weight of the mean KL divergence per latent element")


def build(config: VaeConfig) -> tuple[SparseStructureEncoder, SparseStructureDecoder]:
    """Fresh encoder and decoder of this recipe."""
    torch.manual_seed(config.seed)
    latent, channels = config.latent_channels, list(config.channels)
    return (
        SparseStructureEncoder(1, latent, num_res_blocks=1, channels=channels, num_res_blocks_middle=1),
        SparseStructureDecoder(1, latent, num_res_blocks=1, channels=channels[::-1], num_res_blocks_middle=1),
    )


def symmetric(grid: Tensor, generator: torch.Generator) -> Tensor:
    """The grid under a random one of the cube's 48 symmetries: the VAE is local and has no notion of up."""
    order = torch.randperm(3, generator=generator).tolist()
    flips = [2 + axis for axis in range(3) if torch.rand(1, generator=generator) < 0.5]
    return grid.permute(0, 1, *[2 + axis for axis in order]).flip(flips)


def reconstruction(logits: Tensor, grid: Tensor) -> dict[str, Tensor]:
    """Mean cross-entropy per voxel and Dice loss of ``logits`` [B, 1, R, R, R] against ``grid`` in {0, 1}."""
    inside = logits.sigmoid()
    dice = 1 - (2 * (inside * grid).sum((1, 2, 3, 4)) + 1) / (inside.sum((1, 2, 3, 4)) + grid.sum((1, 2, 3, 4)) + 1)
    return {"bce": F.binary_cross_entropy_with_logits(logits, grid), "dice": dice.mean()}


def terms(
    encoder: SparseStructureEncoder, decoder: SparseStructureDecoder, grid: Tensor, noise: Tensor
) -> dict[str, Tensor]:
    """The terms of ``reconstruction`` and the mean KL divergence."""
    # bfloat16 convolutions: two thirds of the time on a CPU that has them; weights and losses stay in float32.
    with torch.autocast(grid.device.type, dtype=torch.bfloat16, enabled=not emulates_bf16(grid.device)):
        mean, logvar = (part.float() for part in encoder.encode(grid))
        logits = decoder(mean + (0.5 * logvar).exp() * noise).float()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return reconstruction(logits, grid) | {"kl": kl}


def train(
    config: VaeConfig, data: PreparedSet, device: torch.device, state: Path, log: Log
) -> tuple[SparseStructureEncoder, SparseStructureDecoder]:
    """Train on the set's training objects; goes on from the newest checkpoint in the folder ``state``. The random
    numbers are drawn on the CPU."""
    encoder, decoder = build(config)
    both = nn.ModuleDict({"encoder": encoder, "decoder": decoder}).to(device)

    def of_batch(generator: torch.Generator) -> dict[str, Tensor]:
        rows = data.train[torch.randint(len(data.train), (config.batch_size,), generator=generator).numpy()]
        grid = symmetric(data.occupancy(rows), generator)
        edge = grid.shape[-1] >> (len(config.channels) - 1)
        noise = torch.randn(len(grid), config.latent_channels, edge, edge, edge, generator=generator)
        return terms(encoder, decoder, grid.to(device), noise.to(device))

    Loop(config, both, state, beta2=0.999).run(of_batch, WEIGHTS | {"kl": config.kl}, log)
    return encoder.eval(), decoder.eval()


@torch.no_grad()
def unit_scale(encoder: SparseStructureEncoder, decoder: SparseStructureDecoder, data: PreparedSet) -> Tensor:
    """Scale each latent channel to a root mean square of 1, in the weights of the two layers that meet there.

    The flow wants unit variance and TRELLIS's structure stage has no normalisation. Returns the former scales [C].
    """
    device = next(encoder.parameters()).device
    rows = data.train[:: max(1, len(data.train) // 128)]
    latents = torch.cat([encoder.encode(chunk)[0] for chunk in data.occupancy(rows).to(device).split(8)])
    scale = latents.square().mean((0, 2, 3, 4)).sqrt()
    last, first = cast(nn.Conv3d, encoder.out_layer[2]), decoder.input_layer
    assert last.bias is not None
    channels = len(scale)
    last.weight[:channels] /= scale[:, None, None, None, None]
    last.bias[:channels] /= scale
    last.bias[channels:] -= 2 * scale.log()
    first.weight *= scale[None, :, None, None, None]
    return scale


@torch.no_grad()
def quality(encoder: SparseStructureEncoder, decoder: SparseStructureDecoder, data: PreparedSet) -> dict[str, float]:
    """Mean volume IoU of the reconstruction on held-out and on training objects, and of held-out objects from latents
    with noise of standard deviation ``NOISE`` (``noisy_iou``, seed 0)."""
    generator = torch.Generator().manual_seed(0)

    def mean_iou(rows: Tensor, noise: float = 0.0) -> float:
        total = 0.0
        for chunk in rows.split(8):
            grid = data.occupancy(chunk.numpy()).to(next(encoder.parameters()).device) > 0
            latents = encoder.encode(grid.float())[0]
            latents = latents + noise * torch.randn(latents.shape, generator=generator).to(latents)
            found = decoder(latents) > 0
            total += float(volume_iou(found, grid).sum())
        return total / len(rows)

    train_rows = torch.as_tensor(data.train[:: max(1, len(data.train) // 96)])
    test_rows = torch.as_tensor(data.test)
    return {
        "test_iou": mean_iou(test_rows),
        "train_iou": mean_iou(train_rows),
        "noisy_iou": mean_iou(test_rows, NOISE),
    }


def teach_vae(
    config: VaeConfig, data: PreparedSet, out: Path, device: torch.device, log: Log
) -> tuple[SparseStructureEncoder, SparseStructureDecoder]:
    """Train, scale and save ``ss_encoder`` and ``ss_vae_decoder`` (half precision) into ``out``."""
    encoder, decoder = train(config, data, device, out / "vae.state", log)
    unit_scale(encoder, decoder, data)
    save_model(encoder, out / "ss_encoder", dtype=torch.float16)
    save_model(decoder, out / FIRST_DECODER, dtype=torch.float16)
    return encoder, decoder
