"""``pipeline.json`` of a taught model, in the structure of TRELLIS's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewstep.files import write_json
from fewstep.texts import read_json
from fewstep_trellis.normalisation import PIPELINE

ROLES = {
    "sparse_structure_decoder": "ss_decoder",
    "sparse_structure_flow_model": "ss_flow",
    "slat_decoder_gs": "slat_decoder_gs",
    "slat_decoder_mesh": "slat_decoder_mesh",
    "slat_flow_model": "slat_flow",
}


def sampler(steps: int, guidance: float) -> dict[str, Any]:
    """A sampler's entry; ``guidance`` is g of u + g (c - u), TRELLIS's strength is g - 1."""
    params = {"steps": steps, "cfg_strength": guidance - 1, "cfg_interval": [0.0, 1.0], "rescale_t": 1.0}
    return {"name": "FlowEulerGuidanceIntervalSampler", "args": {"sigma_min": 1e-5}, "params": params}


def write_pipeline(folder: Path, mean: list[float], std: list[float]) -> None:
    """Write ``folder/pipeline.json``: where each model is, how it is sampled, and the latents' normalisation.

    Both flows at guidance 3, the structure flow's best (``fewstep teach --stage measure``).
    """
    args = {
        "models": ROLES,
        "sparse_structure_sampler": sampler(25, 3.0),
        "slat_sampler": sampler(25, 3.0),
        "slat_normalization": {"mean": mean, "std": std},
        "image_cond_model": "efficientnet-lite0",
    }
    _write(folder, {"name": "TrellisImageTo3DPipeline", "args": args})


def set_slat_guidance(folder: Path, guidance: float) -> None:
    """Change how the second stage is sampled in ``folder/pipeline.json``."""
    described = read_json(folder / PIPELINE)
    described["args"]["slat_sampler"] = sampler(25, guidance)
    _write(folder, described)


def _write(folder: Path, described: dict[str, Any]) -> None:
    write_json(folder / PIPELINE, described)
