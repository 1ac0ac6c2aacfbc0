"""Small models on structured latents with random weights, ragged batches for them, and what they put out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from fewstep_trellis.checkpoint import build_model
from fewstep_trellis.models import SLatFlowModel
from torch import Tensor, nn

from fewstep.core.layout import Packed

FLOW: dict[str, Any] = {
    "resolution": 8,
    "in_channels": 3,
    "model_channels": 16,
    "cond_channels": 10,
    "out_channels": 3,
    "num_blocks": 2,
    "num_heads": 2,
    "mlp_ratio": 2,
    "io_block_channels": [8],
    "qk_rms_norm": True,
}
FLOWS: dict[str, dict[str, Any]] = {
    "published": {},
    "no skips": {"use_skip_connection": False},
    "one io block a level": {"num_io_res_blocks": 1},
    "no io blocks": {"patch_size": 1, "io_block_channels": None},
    "no io blocks, shared modulation": {"patch_size": 1, "io_block_channels": None, "share_mod": True},
    "io blocks, shared modulation": {"share_mod": True},
    "patch 4": {"patch_size": 4, "io_block_channels": [4, 8]},
    "both norms": {"qk_rms_norm_cross": True},
    "no norms": {"qk_rms_norm": False},
}
VAE: dict[str, Any] = {
    "resolution": 8,
    "model_channels": 16,
    "latent_channels": 3,
    "num_blocks": 3,
    "num_heads": 2,
    "mlp_ratio": 2,
    "attn_mode": "swin",
    "window_size": 4,
}
SPLATS: dict[str, Any] = {
    "lr": {"_xyz": 1.0, "_features_dc": 0.5, "_opacity": 1.0, "_scaling": 1.0, "_rotation": 0.1},
    "perturb_offset": True,
    "voxel_size": 1.5,
    "num_gaussians": 4,
    "3d_filter_kernel_size": 9e-4,
    "scaling_bias": 4e-3,
    "opacity_bias": 0.1,
    "scaling_activation": "softplus",
}
AUTOENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "encoder": ("SLatEncoder", VAE | {"in_channels": 3}),
    "encoder, full": ("SLatEncoder", VAE | {"in_channels": 3, "attn_mode": "full", "qk_rms_norm": True}),
    "gaussians": ("SLatGaussianDecoder", VAE | {"representation_config": SPLATS}),
    "radiance": ("SLatRadianceFieldDecoder", VAE | {"representation_config": {"rank": 2, "dim": 3}}),
    "mesh": (
        "SLatMeshDecoder",
        VAE | {"model_channels": 256, "num_blocks": 2, "mlp_ratio": 1, "representation_config": {"use_color": True}},
    ),
    "mesh, no colour, full": (
        "SLatMeshDecoder",
        VAE | {"model_channels": 256, "num_blocks": 1, "mlp_ratio": 1, "attn_mode": "full", "window_size": None},
    ),
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {f"flow, {k}": ("SLatFlowModel", FLOW | v) for k, v in FLOWS.items()}
CASES |= AUTOENCODERS

LENGTHS = [9, 0, 1, 14]
"""Rows of each sample; one is empty, one a lone voxel."""


def awake(name: str, args: dict[str, Any]) -> Any:
    """A float64 model with random weights everywhere: fresh ones put out zero."""
    model, generator = build_model(name, args), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.3 if p.ndim == 1 else p[0].numel() ** -0.5))
    return model.double()


def ragged(lengths: list[int] = LENGTHS, size: int = 8, seed: int = 3) -> Packed:
    """Distinct voxels of a grid in random order."""
    generator = torch.Generator().manual_seed(seed)
    picks = [torch.randperm(size**3, generator=generator)[:n] for n in lengths]
    place = torch.cat(picks)
    coords = torch.stack([place // size**2, place // size % size, place % size], 1).int()
    return Packed.of_lengths(lengths, coords)


def inputs(model: nn.Module, layout: Packed, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Random inputs: ``x`` [T, 3] for all, and ``t`` [B] and ``cond`` [B, L, Cc] for a flow."""
    generator = torch.Generator().manual_seed(5)
    found = {"x": torch.randn(layout.rows, 3, generator=generator, dtype=dtype)}
    if isinstance(model, SLatFlowModel):
        batch = layout.batch_size
        found["t"] = torch.linspace(900, 100, batch, dtype=dtype)
        found["cond"] = torch.randn(batch, 5, model.cond_channels, generator=generator, dtype=dtype)
    return found


def run(model: Any, given: dict[str, Tensor], layout: Packed) -> Tensor:
    """The raw output, [T, C] or [64 T, C]."""
    more = [given[key] for key in ("t", "cond") if key in given]
    out = model(given["x"], *more, layout)
    raw: Tensor = out[0] if isinstance(out, tuple) else out
    return raw


def one_by_one(model: Any, given: dict[str, Tensor], layout: Packed, go: Callable[..., Tensor] = run) -> list[Tensor]:
    """``go`` for each sample alone; a sample without rows has no call of its own."""
    found = []
    for i, x in enumerate(given["x"].split(layout.lengths_list)):
        if len(x):
            _, alone = layout.select(given["x"], torch.tensor([i]))
            found.append(go(model, {k: x if k == "x" else v[i : i + 1] for k, v in given.items()}, alone))
    return found
