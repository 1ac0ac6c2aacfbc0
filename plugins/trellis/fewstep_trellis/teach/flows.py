"""The flows of both stages: their random start, and their training by the engine that distils."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import Field

import fewstep
from fewstep.config.base import Strict
from fewstep_trellis.checkpoint import load_model, save_model
from fewstep_trellis.models import SLatFlowModel, SparseStructureFlowModel

if TYPE_CHECKING:
    from fewstep_trellis.teach.config import Job


class StructureFlowConfig(Strict):
    """Size of the structure flow; TRELLIS-image-large is width 1024, 24 blocks, 16 heads, patch 1, cond 1024."""

    width: int = Field(128, gt=0, description="channels of the transformer")
    blocks: int = Field(6, gt=0, description="transformer blocks")
    heads: int = Field(4, gt=0, description="attention heads")
    mlp_ratio: float = Field(4, gt=0, description="width of the feed-forward networks over the transformer's")
    patch: int = Field(2, gt=0, description="edge of the cube of latents that makes a token")
    share_mod: bool = Field(True, description="one modulation network for all blocks (saves a third of the weights)")
    seed: int = Field(0, description="seed of the weights")


def write_structure_initial(
    config: StructureFlowConfig, path: Path, *, resolution: int, channels: int, cond_channels: int
) -> None:
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


class SlatFlowConfig(Strict):
    """Size of the flow; TRELLIS-image-large is width 1024, 24 blocks, 16 heads, patch 2, two io blocks of 128."""

    width: int = Field(96, gt=0, description="channels of the transformer")
    blocks: int = Field(4, gt=0, description="transformer blocks")
    heads: int = Field(4, gt=0, description="attention heads")
    mlp_ratio: float = Field(3, gt=0, description="width of the feed-forward networks over the transformer's")
    io_width: int = Field(16, gt=0, description="channels at full resolution, before and after the transformer")
    seed: int = Field(0, description="seed of the weights")


def write_slat_initial(
    config: SlatFlowConfig, path: Path, *, resolution: int, channels: int, cond_channels: int
) -> None:
    """Write a randomly initialised flow for latents of ``channels`` and tokens of ``cond_channels``.

    Two blocks a level, as official: with one, nothing at full resolution would reach the output, and the noise of a
    single voxel could not be told from its neighbours'.
    """
    torch.manual_seed(config.seed)
    model = SLatFlowModel(
        resolution=resolution,
        in_channels=channels,
        out_channels=channels,
        model_channels=config.width,
        cond_channels=cond_channels,
        num_blocks=config.blocks,
        num_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        patch_size=2,
        num_io_res_blocks=2,
        io_block_channels=[config.io_width],
        pe_mode="ape",
        qk_rms_norm=True,
    )
    save_model(model, path)


def train_flow(
    job: Job, backbone: str, *, initial: str, encoder: str, decoder: str, run: str, name: str, preset: str | None = None
) -> None:
    """Train a flow by flow matching and save its moving average in half precision.

    Args:
        initial, encoder, decoder: checkpoints in the job's folder.
        run: folder of the training run there.
        name: the trained flow's checkpoint there.
    """
    out = job.out
    tables = {
        "backbone": {"teacher": out / initial, "decoder": out / decoder},
        "data": {"encoder": out / encoder, "root": job.config.root},
        "train": {"device": str(job.device)},
    }
    found = fewstep.distill(
        "flow-matching",
        backbone,
        preset=preset,
        config=tables,
        overrides=job.overrides,
        out=out / run,
        resume=job.resume and (out / run).exists(),
        console=job.console,
    )
    save_model(load_model(found.folder / "student" / "model"), out / name, dtype=torch.float16)
    job.console.print(f"teacher: {out / name}.safetensors")
