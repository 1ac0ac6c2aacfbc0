"""A whole tiny pipeline in the official layout, random weights: what the tests of loading and generating run on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from conftest import refusal
from fewstep_trellis.checkpoint import build_model, save_model
from PIL import Image, ImageDraw
from torch import nn

C, COND, GRID, LATENT = 4, 32, 8, 4  # channels of the latents and of the condition; sides of the voxel and latent grids
TORSO = {"resolution": GRID, "latent_channels": C, "num_blocks": 1, "num_heads": 2, "window_size": 4, "use_fp16": True}
GAUSSIANS = {
    "lr": {"_xyz": 1.0, "_features_dc": 1.0, "_opacity": 1.0, "_scaling": 1.0, "_rotation": 0.1},
    "perturb_offset": True,
    "voxel_size": 1.5,
    "num_gaussians": 2,
    "3d_filter_kernel_size": 9e-4,
    "scaling_bias": 4e-3,
    "opacity_bias": 0.1,
    "scaling_activation": "softplus",
}
FLOW: dict[str, Any] = {
    "in_channels": C,
    "out_channels": C,
    "model_channels": 32,
    "cond_channels": COND,
    "num_blocks": 1,
    "num_heads": 2,
    "use_fp16": True,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "ss_flow": ("SparseStructureFlowModel", {**FLOW, "resolution": LATENT, "patch_size": 1}),
    "ss_dec": (
        "SparseStructureDecoder",
        {
            "out_channels": 1,
            "latent_channels": C,
            "num_res_blocks": 1,
            "num_res_blocks_middle": 1,
            "channels": [16, 8],
            "use_fp16": True,
        },
    ),
    "slat_flow": (
        "ElasticSLatFlowModel",
        {**FLOW, "resolution": GRID, "patch_size": 2, "num_io_res_blocks": 1, "io_block_channels": [16]},
    ),
    "slat_dec_mesh": (
        "ElasticSLatMeshDecoder",
        {**TORSO, "model_channels": 256, "representation_config": {"use_color": True}},
    ),
    "slat_dec_gs": ("SLatGaussianDecoder", {**TORSO, "model_channels": 32, "representation_config": GAUSSIANS}),
    "slat_dec_rf": (
        "SLatRadianceFieldDecoder",
        {**TORSO, "model_channels": 32, "representation_config": {"rank": 2, "dim": 4}},
    ),
}
ROLES = {
    "sparse_structure_flow_model": "ss_flow",
    "sparse_structure_decoder": "ss_dec",
    "slat_flow_model": "slat_flow",
    "slat_decoder_mesh": "slat_dec_mesh",
    "slat_decoder_gs": "slat_dec_gs",
    "slat_decoder_rf": "slat_dec_rf",
}
NORMALISATION = {"mean": [0.5, -1.0, 0.0, 2.0], "std": [1.5, 0.5, 2.0, 1.0]}
STRUCTURE_SAMPLER = {
    "name": "FlowEulerGuidanceIntervalSampler",
    "args": {"sigma_min": 1e-5},
    "params": {"steps": 3, "cfg_strength": 1.5, "cfg_interval": [0.5, 0.95], "rescale_t": 2.0},
}
LATENT_SAMPLER = {
    "name": "FlowEulerGuidanceIntervalSampler",
    "args": {"sigma_min": 1e-5},
    "params": {"steps": 2, "cfg_strength": 3.0, "cfg_interval": [0.0, 1.0], "rescale_t": 3.0},
}


def network(name: str, seed: int = 0) -> nn.Module:
    """A model of the tiny pipeline in which nothing is zero: fresh ones start with outputs of 0."""
    cls, args = MODELS[name]
    generator = torch.Generator().manual_seed(seed + sum(name.encode()))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_model(cls, args)
    for parameter in model.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
        scale = 0.1 if parameter.ndim == 1 else fan_in**-0.5
        around = parameter.detach().float() if parameter.ndim == 1 else 0.0
        parameter.data = (around + scale * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)
    return model


def description(**changes: Any) -> dict[str, Any]:
    """What ``pipeline.json`` of the tiny pipeline says, with keys of ``args`` changed (None: left out)."""
    args = {
        "models": {role: f"ckpts/{name}" for role, name in ROLES.items()},
        "sparse_structure_sampler": STRUCTURE_SAMPLER,
        "slat_sampler": LATENT_SAMPLER,
        "slat_normalization": NORMALISATION,
        "image_cond_model": "dinov2_vitl14_reg",
        **changes,
    }
    name = "TrellisTextTo3DPipeline" if args.get("text_cond_model") else "TrellisImageTo3DPipeline"
    return {"name": name, "args": {key: value for key, value in args.items() if value is not None}}


def write_pipeline(folder: Path, **changes: Any) -> Path:
    """The whole pipeline as files, in half precision where the official ones are."""
    (folder / "ckpts").mkdir(parents=True)
    for name in MODELS:
        save_model(network(name), folder / "ckpts" / name)
        config = folder / "ckpts" / f"{name}.json"
        config.write_text(json.dumps({"name": MODELS[name][0], "args": MODELS[name][1]}))
    describe(folder, **changes)
    return folder


def describe(folder: Path, **changes: Any) -> Path:
    """Write ``pipeline.json`` anew."""
    (folder / "pipeline.json").write_text(json.dumps(description(**changes), indent=4))
    return folder


def write_encoder(folder: Path) -> Path:
    """A DINOv2 with registers of 28-pixel pictures, in transformers' format."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    torch.manual_seed(0)
    config = Dinov2WithRegistersConfig(
        hidden_size=COND,
        num_hidden_layers=1,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=28,
        patch_size=14,
        num_register_tokens=2,
    )
    Dinov2WithRegistersModel(config).save_pretrained(folder)
    return folder


def picture(path: Path, colour: str = "red", size: int = 64) -> Path:
    """A disc on a transparent background."""
    image = Image.new("RGBA", (size, size))
    ImageDraw.Draw(image).ellipse((12, 20, 48, 40), fill=colour)
    image.save(path)
    return path


@dataclass
class Done:
    """A command that ended: its exit code and what it printed."""

    code: int
    out: str
    err: str


Go = Callable[..., Done]


def refused(done: Done) -> str:
    """The message, after whatever warnings and model lines came before it."""
    return refusal(done.code, "", done.err[done.err.index("error: ") :])
