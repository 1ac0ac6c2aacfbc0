"""The structured-latent VAE: surface features of voxels to latents, and from them to meshes.

The mesh decoder is compared with the signed distance at the corners of its fine cubes, and with colours and normals
near the surface. That costs a thousandth of rendering the mesh on a CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from fewstep_shapes3d.data.attributes import CHANNELS
from fewstep_shapes3d.data.prepared import PreparedSet
from fewstep_shapes3d.data.surface import SUBDIVISION
from fewstep_shapes3d.data.targets import CLIP
from pydantic import Field
from torch import Tensor, nn

from fewstep_trellis.models import SLatEncoder, SLatMeshDecoder
from fewstep_trellis.teach.crops import LID, WALL, Crop, draw_crop, layout_of
from fewstep_trellis.teach.loop import CropsConfig, Log, Loop

SDF, DEFORM, WEIGHT, COLOUR = slice(0, 8), slice(8, 32), slice(32, 53), slice(53, 101)  # features of a cube
BITS = torch.tensor([[i & 1, i >> 1 & 1, i >> 2 & 1] for i in range(8)])  # corner i of a cube: x fastest
NEAR = 0.25  # voxels: where colours and normals are compared, one fine cube to each side of the surface
WEIGHTS = {"sdf": 2.0, "sign": 0.25, "colour": 4.0, "normal": 0.5, "lid": 8.0, "shape": 0.01}


class SlatVaeConfig(CropsConfig):
    """Recipe of the encoder and the mesh decoder, trained together."""

    encoder_width: int = Field(96, gt=0, description="channels of the encoder")
    mesh_width: int = Field(256, gt=0, multiple_of=256, description="channels of the mesh decoder")
    latent_channels: int = Field(8, gt=0, description="channels of the latents")
    kl: float = Field(0.01, ge=0, description="weight of the mean KL divergence per latent element")


class SlatVae(nn.Module):
    """Encoder and mesh decoder, TRELLIS's classes at another size."""

    def __init__(self, config: SlatVaeConfig, resolution: int) -> None:
        super().__init__()
        torch.manual_seed(config.seed)
        self.channels, self.kl = config.latent_channels, config.kl
        shared = shared_arguments(resolution, config.latent_channels)
        width = config.encoder_width
        self.encoder = SLatEncoder(in_channels=CHANNELS, model_channels=width, num_blocks=2, mlp_ratio=2, **shared)
        color = {"use_color": True}
        width = config.mesh_width
        self.mesh = SLatMeshDecoder(
            model_channels=width, num_blocks=1, mlp_ratio=1, representation_config=color, **shared
        )
        self._start(self.channels)

    @torch.no_grad()
    def _start(self, channels: int) -> None:
        """Change the initial weights. From the official ones (output layers zero, features faint beside the position
        embedding) all channels first learn the same thing, whether a voxel is inside: ten times the steps."""
        self.encoder.input_layer.weight *= 4
        self.mesh.input_layer.weight *= 2
        nn.init.xavier_uniform_(self.encoder.out_layer.weight[:channels])
        self.encoder.out_layer.bias[channels:] = -4  # a narrow posterior: the decoder must not learn to ignore it
        nn.init.normal_(self.mesh.out_layer.weight, std=0.02)
        self.mesh.out_layer.weight[8:53] = 0  # extraction without deformation, with equal weights


def shared_arguments(resolution: int, latent_channels: int) -> dict[str, Any]:
    """Constructor arguments that encoder and decoders have in common."""
    attention = {"num_heads": 4, "attn_mode": "swin", "window_size": 8}
    return {"resolution": resolution, "latent_channels": latent_channels, **attention}


def losses(vae: SlatVae, crops: list[Crop], eps: Tensor, resolution: int) -> dict[str, Tensor]:
    """The terms of ``field_terms`` and ``kl``, means over the crops; ``eps`` [T, C] makes the sample."""
    layout = layout_of(crops)
    features = torch.cat([crop.features for crop in crops])
    z, mean, logvar = vae.encoder(features, layout, sample_posterior=True, noise=eps, return_raw=True)
    raw, fine = vae.mesh(z, layout)
    lengths = [SUBDIVISION**3 * len(crop.coords) for crop in crops]
    parts = zip(crops, raw.float().split(lengths), fine.coords.split(lengths), strict=True)
    found = [field_terms(crop, values, cubes, -1 / (SUBDIVISION * resolution)) for crop, values, cubes in parts]
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return {name: torch.stack([terms[name] for terms in found]).mean() for name in found[0]} | {"kl": kl}


class MeshConfig(CropsConfig):
    """Recipe of the mesh decoder's further training, on latents that no longer change."""

    steps: int = Field(1500, gt=0, description="optimiser steps")
    lr: float = Field(1e-3, gt=0, description="peak learning rate (one-cycle)")
    seed: int = Field(1, description="seed of order and augmentation")


def train(vae: SlatVae, config: CropsConfig, data: PreparedSet, targets: Path, state: Path, log: Log) -> SlatVae:
    """Train on crops of the set's training objects; goes on from the newest checkpoint in the folder ``state``.

    With a frozen encoder only the decoder is trained.
    """
    loop, channels, device = Loop(config, vae, state), vae.channels, vae.mesh.out_layer.weight.device

    def terms(generator: torch.Generator) -> dict[str, Tensor]:
        crops = [draw_crop(data, targets, config.voxels, generator).to(device) for _ in range(config.crops)]
        eps = torch.randn(sum(len(crop.coords) for crop in crops), channels, generator=generator)
        return losses(vae, crops, eps.to(device), data.resolution)

    loop.run(terms, WEIGHTS | {"kl": vae.kl}, log)
    return vae.eval()


def at_corners(raw: Tensor, cubes: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
    """Values at corners as mesh extraction reads them: the mean over the cubes that share a corner.

    Args:
        raw: [N, 101] features of the cubes at ``cubes`` int [N, 3].
        corners: int64 [P, 3], all corners of these cubes, each once, in C order.

    Returns:
        Signed distance [P], 1 standing for half a voxel and without extraction's bias, and attributes [P, 6] in [0, 1].
    """
    side = int(corners.max()) + 1
    key = (cubes[:, None].long() + BITS.to(cubes.device)).flatten(0, 1)
    wanted, known = ((k[:, 0] * side + k[:, 1]) * side + k[:, 2] for k in (key, corners))
    at = torch.searchsorted(known, wanted)
    values = torch.cat([raw[:, SDF].reshape(-1, 1), raw[:, COLOUR].reshape(-1, 6)], 1)
    total = raw.new_zeros(len(corners), 7).index_add(0, at, values)
    mean = total / torch.bincount(at, minlength=len(corners))[:, None]
    return mean[:, 0], mean[:, 1:].sigmoid()


def field_terms(crop: Crop, raw: Tensor, cubes: Tensor, bias: float) -> dict[str, Tensor]:
    """Terms of one crop: ``sdf`` (absolute error, one-sided beyond half a voxel), ``sign`` (cross-entropy), ``colour``
    and ``normal`` (absolute errors near the surface), ``lid`` (how far inside the corners are that should close the
    mesh at the grid's border), ``shape`` (size of deformations and weights)."""
    value, attributes = at_corners(raw, cubes, crop.corners)
    value, truth = value + bias, crop.distance / CLIP
    error = (value - truth).abs()
    # Beyond the targets' range, any larger value of the right sign will do.
    beyond = (crop.distance > CLIP - WALL - 0.01) | (truth < -0.99)
    error = error.masked_fill(beyond & (value.abs() > truth.abs()) & (value * truth > 0), 0.0)
    near = crop.distance.abs() < NEAR
    gap = (attributes - crop.attributes).abs()[near]
    lid = crop.border & (truth < LID + 1e-3)
    return {
        "sdf": error.mean() + error[near].mean(),
        "sign": F.binary_cross_entropy_with_logits(-8 * value, (truth < 0).to(value)),
        "colour": gap[:, :3].mean(),
        "normal": gap[:, 3:].mean(),
        "lid": (LID - value[lid]).relu().sum() / max(int(lid.sum()), 1),
        "shape": raw[:, DEFORM].square().mean() + raw[:, WEIGHT].square().mean(),
    }
