"""TRELLIS-image-large's models with random weights, as in ``benchmarks/fullsize``, built on the device."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.bench import Bench

FULLSIZE = Path(__file__).parents[2] / "fullsize"
if str(FULLSIZE) not in sys.path:
    sys.path.append(str(FULLSIZE))  # a folder of scripts, whose modules import each other by name

import fullsize as full  # noqa: E402
import generate as generate  # noqa: E402
from fewstep_trellis.checkpoint import build_model  # noqa: E402
from fewstep_trellis.configs import official_config  # noqa: E402
from fewstep_trellis.weights import fit  # noqa: E402

TOKENS = full.Flow.tokens  # condition tokens of one picture
# A dry run keeps every part, at a smaller size.
SMALL_FLOW = {"model_channels": 32, "cond_channels": 32, "num_blocks": 2, "num_heads": 2, "use_fp16": False}
SMALL: dict[str, dict[str, Any]] = {
    "sparse_structure_flow_model": {**SMALL_FLOW, "resolution": 4},
    "slat_flow_model": {**SMALL_FLOW, "resolution": 16, "io_block_channels": [16]},
    "sparse_structure_decoder": {
        "channels": [32, 16, 8],
        "num_res_blocks": 1,
        "num_res_blocks_middle": 1,
        "use_fp16": False,
    },
    "slat_decoder_gs": {"model_channels": 32, "num_blocks": 2, "num_heads": 2, "resolution": 16, "use_fp16": False},
    "slat_decoder_mesh": {"model_channels": 256, "num_blocks": 2, "num_heads": 4, "resolution": 16, "use_fp16": False},
}


def described(bench: Bench, role: str) -> tuple[str, dict[str, Any]]:
    """Class and arguments of the model with this role in ``pipeline.json``."""
    name, args = official_config(generate.ROLES[role])
    return name, {**args, **(SMALL[role] if bench.dry else {})}


def model(bench: Bench, role: str, **changed: Any) -> nn.Module:
    """A model of the official size and types on the device, with random weights as in ``fullsize.py``."""
    name, args = described(bench, role)
    made = build_model(name, {**args, **changed}, "meta")
    fit(made, dict(full.random_tensors(name, {**args, **changed}, device=bench.device)), role)
    found: nn.Module = made.to(bench.device)
    return found


def encoder(bench: Bench) -> Any:
    """The image encoder: DINOv2 ViT-L/14 with registers, with random weights."""
    from fewstep_trellis.conditioning.dino import DinoConditioner
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    sizes = bench.sizes((1024, 24, 16, 518), (32, 2, 2, 56))
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size")
    config = Dinov2WithRegistersConfig(**dict(zip(names, sizes, strict=True)), patch_size=14, num_register_tokens=4)
    with torch.device(bench.device):
        return DinoConditioner(Dinov2WithRegistersModel(config), "random")
