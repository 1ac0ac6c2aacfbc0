"""Further training of the structure decoder on noisy latents of the finished encoder.

A flow's samples are a little off the encoder's latents, and a decoder that has only seen these leaves holes in thin
surfaces. Noise on the latents makes it tolerant (Diffusion Transformers with Representation Autoencoders, arXiv
2510.11690, noise-augmented decoding). The latents stay as they are, so flows and students need no new training.
"""

from __future__ import annotations

from pathlib import Path

import torch
from fewstep_shapes3d.data.prepared import PreparedSet
from pydantic import Field
from torch import Tensor

from fewstep.engine.device import emulates_bf16
from fewstep_trellis.models import SparseStructureDecoder, SparseStructureEncoder
from fewstep_trellis.teach.loop import Log, Loop, LoopConfig
from fewstep_trellis.teach.vae import WEIGHTS, reconstruction, symmetric


class DecoderConfig(LoopConfig):
    """Recipe of the structure decoder's further training."""

    steps: int = Field(2000, gt=0, description="optimiser steps")
    lr: float = Field(5e-4, gt=0, le=1, description="peak learning rate (one-cycle)")
    seed: int = Field(1, description="seed of order, augmentation and noise")
    batch_size: int = Field(4, gt=0, description="grids per step")
    noise: float = Field(
        0.8, ge=0, description="scale s of the noise on the latents; each object's noise has deviation |N(0, s^2)|"
    )


def train_decoder(
    config: DecoderConfig,
    encoder: SparseStructureEncoder,
    decoder: SparseStructureDecoder,
    data: PreparedSet,
    state: Path,
    log: Log,
) -> SparseStructureDecoder:
    """Train on the set's training objects; goes on from the newest checkpoint in the folder ``state``.

    Only the decoder changes. Both models are on one device; the random numbers are drawn on the CPU.
    """
    device = next(decoder.parameters()).device

    def of_batch(generator: torch.Generator) -> dict[str, Tensor]:
        rows = data.train[torch.randint(len(data.train), (config.batch_size,), generator=generator).numpy()]
        grid = symmetric(data.occupancy(rows), generator).to(device)
        with torch.no_grad():
            latents = encoder.encode(grid)[0]
        deviation = config.noise * torch.randn(len(rows), 1, 1, 1, 1, generator=generator).abs()
        noise = deviation * torch.randn(latents.shape, generator=generator)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=not emulates_bf16(device)):
            logits = decoder(latents + noise.to(device))
        return reconstruction(logits.float(), grid)

    Loop(config, decoder.train(), state, beta2=0.999).run(of_batch, WEIGHTS, log)
    return decoder.eval()
