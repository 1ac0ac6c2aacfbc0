"""The Gaussian decoder of the structured latents, trained on latents of a finished encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fewstep_shapes3d.data.prepared import PreparedSet
from pydantic import Field
from torch import Tensor

from fewstep_trellis.models import SLatEncoder, SLatGaussianDecoder
from fewstep_trellis.teach.crops import draw_crop, layout_of
from fewstep_trellis.teach.gaussian_loss import gaussian_terms
from fewstep_trellis.teach.loop import Log, Loop, LoopConfig
from fewstep_trellis.teach.slat_vae import shared_arguments

WEIGHTS = {"chamfer": 1.0, "tint": 1.0, "size": 0.2, "faint": 0.05}


class GaussianConfig(LoopConfig):
    """Recipe of the Gaussian decoder."""

    width: int = Field(96, gt=0, description="channels")
    gaussians: int = Field(8, gt=0, description="Gaussians a voxel")
    voxels: int = Field(1000, gt=0, description="voxels a piece, at most")


def build(config: GaussianConfig, resolution: int, latent_channels: int) -> SLatGaussianDecoder:
    """A fresh decoder of this recipe: TRELLIS's own settings but for the number a voxel and the size of a kernel."""
    torch.manual_seed(config.seed)
    rates = {"_xyz": 1.0, "_features_dc": 1.0, "_opacity": 1.0, "_scaling": 1.0, "_rotation": 0.1}
    splats: dict[str, Any] = {"lr": rates, "perturb_offset": True, "voxel_size": 1.5, "num_gaussians": config.gaussians}
    splats |= {"2d_filter_kernel_size": 0.1, "3d_filter_kernel_size": 9e-4, "scaling_activation": "softplus"}
    splats |= {
        "scaling_bias": 6e-3,
        "opacity_bias": 0.1,
    }  # 32 voxels on a side and few each: larger than TRELLIS's 4e-3
    shared = shared_arguments(resolution, latent_channels)
    decoder = SLatGaussianDecoder(
        model_channels=config.width, num_blocks=2, mlp_ratio=2, representation_config=splats, **shared
    )
    with torch.no_grad():
        decoder.input_layer.weight *= 2  # beside the position embedding, as in the VAE
    return decoder


def train(
    config: GaussianConfig, encoder: SLatEncoder, data: PreparedSet, targets: Path, state: Path, log: Log
) -> SLatGaussianDecoder:
    """Train on samples of the posterior of a frozen encoder; goes on from ``state`` where that file exists."""
    channels = int(encoder.args["latent_channels"])
    decoder = build(config, data.resolution, channels)
    loop = Loop(config, decoder, state)

    def terms(generator: torch.Generator) -> dict[str, Tensor]:
        crops = [draw_crop(data, targets, config.voxels, generator) for _ in range(config.crops)]
        layout, features = layout_of(crops), torch.cat([crop.features for crop in crops])
        eps = torch.randn(len(features), channels, generator=generator)
        with torch.no_grad():
            z = encoder(features, layout, sample_posterior=True, noise=eps)
        parts = zip(crops, decoder.decode(z, layout), strict=True)
        found = [gaussian_terms(crop, splats, data.resolution) for crop, splats in parts]
        return {name: torch.stack([term[name] for term in found]).mean() for name in found[0]}

    loop.run(terms, WEIGHTS, log)
    return decoder.eval()
