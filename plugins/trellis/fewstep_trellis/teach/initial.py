"""A structure flow with random weights, the start of a teacher."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field

from fewstep.config.base import Strict
from fewstep_trellis.checkpoint import save_model
from fewstep_trellis.models import SparseStructureFlowModel


class FlowConfig(Strict):
    """Size of the structure flow; TRELLIS-image-large is width 1024, 24 blocks, 16 heads, patch 1, cond 1024."""

    width: int = Field(128, gt=0, description="channels of the transformer")
    blocks: int = Field(6, gt=0, description="transformer blocks")
    heads: int = Field(4, gt=0, description="attention heads")
    mlp_ratio: float = Field(4, gt=0, description="width of the feed-forward networks over the transformer's")
    patch: int = Field(2, gt=0, description="edge of the cube of latents that makes a token")
    share_mod: bool = Field(True, description="one modulation network for all blocks (saves a third of the weights)")
    seed: int = Field(0, description="seed of the weights")


def write_initial(config: FlowConfig, path: Path, *, resolution: int, channels: int, cond_channels: int) -> None:
    """Write a randomly initialised flow for latents [channels, resolution^3] and tokens of ``cond_channels``."""
    torch.manual_seed(config.seed)
    model = SparseStructureFlowModel(
        resolution=resolution,
        in_channels=channels,
        out_channels=channels,
        model_channels=config.width,
        cond_channels=cond_channels,
        num_blocks=config.blocks,
        num_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        patch_size=config.patch,
        share_mod=config.share_mod,
        pe_mode="ape",
        qk_rms_norm=True,
    )
    save_model(model, path)
