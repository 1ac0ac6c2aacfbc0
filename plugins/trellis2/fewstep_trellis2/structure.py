"""The structure stage as a ``Backbone``, and the stages of TRELLIS.2 by name."""

from __future__ import annotations

from pathlib import Path

import torch
from fewstep_trellis.backbone import StructureFlow
from pydantic import Field

from fewstep_trellis2.configs import FOLDER
from fewstep_trellis2.flow import COARSE, HUB, RESCALE, STAGES, WARP, MeasuredStage, StageConfig
from fewstep_trellis2.models import MODELS, SparseStructureFlowModel


class StructureConfig(StageConfig):
    """Which structure flow is distilled, and how its teacher is guided."""

    teacher: Path = Field(
        Path(f"{HUB}/ss_flow_img_dit_1_3B_64_bf16"), description="structure-flow checkpoint (json + safetensors pair)"
    )
    guidance_rescale: float = Field(0.7, ge=0, le=1, description=RESCALE)
    rescale_t: float = Field(5.0, gt=0, description=WARP)


class StructureStage(MeasuredStage, StructureFlow):
    """Velocity of structure latents [B, 8, 16, 16, 16] under image tokens [B, L, 1024]."""

    Config = StructureConfig
    name, network, models, stored = "trellis2", SparseStructureFlowModel, MODELS, torch.bfloat16
    dataset, stage, stages, published = "trellis2-structure", "structure", STAGES, FOLDER
    tokens = COARSE
