"""The Gaussian decoder of the structured latents, trained on latents of a finished encoder.

The loss asks for small opaque Gaussians on the surface, in its colours. It needs no renderer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from fewstep_shapes3d.data.prepared import PreparedSet
from fewstep_shapes3d.representations.gaussians import Gaussians
from pydantic import Field
from torch import Tensor

from fewstep_trellis.models import SLatEncoder, SLatGaussianDecoder
from fewstep_trellis.teach.crops import Crop, draw_crop, layout_of
from fewstep_trellis.teach.loop import CropsConfig, Log, Loop
from fewstep_trellis.teach.slat_vae import shared_arguments

SH0 = 0.28209479177387814  # value of the constant spherical harmonic
MOST = 16  # surface points of a voxel that the loss looks at
WEIGHTS = {"chamfer": 1.0, "tint": 1.0, "size": 0.2, "faint": 0.05}


class GaussianConfig(CropsConfig):
    """Recipe of the Gaussian decoder."""

    width: int = Field(96, gt=0, description="channels")
    gaussians: int = Field(8, gt=0, description="Gaussians per voxel")
    voxels: int = Field(1000, gt=0, description="voxels per piece, at most")


def build(config: GaussianConfig, resolution: int, latent_channels: int) -> SLatGaussianDecoder:
    """A fresh decoder of this recipe: TRELLIS's own settings except for the Gaussians per voxel and their size."""
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
    """Train on posterior samples of a frozen encoder; goes on from the newest checkpoint in the folder ``state``."""
    channels = int(encoder.args["latent_channels"])
    device = encoder.out_layer.weight.device
    decoder = build(config, data.resolution, channels).to(device)
    loop = Loop(config, decoder, state)

    def terms(generator: torch.Generator) -> dict[str, Tensor]:
        crops = [draw_crop(data, targets, config.voxels, generator).to(device) for _ in range(config.crops)]
        layout, features = layout_of(crops), torch.cat([crop.features for crop in crops])
        eps = torch.randn(len(features), channels, generator=generator).to(device)
        with torch.no_grad():
            z = encoder(features, layout, sample_posterior=True, noise=eps)
        parts = zip(crops, decoder.decode(z, layout), strict=True)
        found = [gaussian_terms(crop, splats, data.resolution) for crop, splats in parts]
        return {name: torch.stack([term[name] for term in found]).mean() for name in found[0]}

    loop.run(terms, WEIGHTS, log)
    return decoder.eval()


def gaussian_terms(crop: Crop, found: Gaussians, resolution: int) -> dict[str, Tensor]:
    """Terms of one crop's Gaussians: ``chamfer`` to the surface points of its voxel (in voxels, both ways), ``tint``
    (colour against the nearest, both ways), ``size`` (log scale against the spacing), ``faint`` (opacity short of 1).
    """
    per_voxel = len(found) // len(crop.coords)
    centres = found.xyz.view(-1, per_voxel, 3)
    rows, valid = _points_of(crop, MOST)
    apart = torch.cdist(centres, crop.points[rows])
    apart = apart.masked_fill(~valid[:, None], torch.inf)
    seen = valid.any(1)
    to_point, nearest = apart[seen].min(2)
    to_gaussian, owner = apart[seen].min(1)
    held = valid[seen]
    colour = found.features_dc.view(-1, per_voxel, 3) * SH0 + 0.5
    shade = crop.shade[rows][seen]
    tint = (colour[seen] - shade.gather(1, nearest[..., None].expand(-1, -1, 3))).abs().mean()
    back = (colour[seen].gather(1, owner[..., None].expand(-1, -1, 3)) - shade).abs().mean(-1)[held].mean()
    spacing = torch.cdist(centres, centres).detach() + 9 * torch.eye(per_voxel, device=centres.device)
    wanted = (0.6 * spacing.min(2).values).clamp(2e-3, 1e-2).log()
    return {
        "chamfer": resolution * (to_point.mean() + to_gaussian[held].mean()),
        "tint": tint + back,
        "size": (found.scaling.view(-1, per_voxel, 3).log() - wanted[..., None]).abs().mean(),
        "faint": F.softplus(4 - found.opacity_logit).mean(),
    }


def _points_of(crop: Crop, most: int) -> tuple[Tensor, Tensor]:
    """Indices [T, most] of the first surface points of each voxel, and which of these exist."""
    order = crop.owner.argsort(stable=True)
    counts = torch.bincount(crop.owner, minlength=len(crop.coords))
    start = counts.cumsum(0) - counts
    slot = torch.arange(most, device=counts.device)
    valid = slot < counts[:, None]
    rows = order[(start[:, None] + slot).clamp(max=max(len(order) - 1, 0))] if len(order) else valid.long()
    return rows, valid
