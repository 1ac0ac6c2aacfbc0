"""A full-size pipeline on a CPU, one step per stage: what ``fewstep generate`` needs with and without ``--low-memory``.

``python benchmarks/fullsize/generate.py FOLDER`` writes TRELLIS-image-large's models with random weights into FOLDER
(3 GB, kept for later runs) and runs each mode in a separate process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from fewstep_trellis.conditioning import image_conditioner
from fewstep_trellis.configs import official_config
from fewstep_trellis.pipeline import Request, Runner, of_pictures
from fewstep_trellis.pipeline import run as stages
from fewstep_trellis.pipeline.memory import peak_memory
from fullsize import RESULTS, VOXELS, shell, write
from PIL import Image, ImageDraw

from fewstep.benchmark.run import machine
from fewstep.config.run import versions

ROLES = {
    "sparse_structure_flow_model": "ss_flow_img_dit_L_16l8_fp16",
    "sparse_structure_decoder": "ss_vae_conv3d_16l8_fp16.decoder",
    "slat_flow_model": "slat_flow_img_dit_L_64l8p2_fp16",
    "slat_decoder_mesh": "slat_vae_dec_mesh_swin8_B_64l8_fp16",
    "slat_decoder_gs": "slat_vae_enc_dec_gs_swin8_B_64l8_fp16.decoder",
}
DECODERS = ("slat_decoder_mesh", "slat_decoder_gs")
SAMPLER = {
    "name": "FlowEulerGuidanceIntervalSampler",
    "args": {"sigma_min": 1e-5},
    "params": {"steps": 1, "cfg_strength": 0.0, "cfg_interval": [1.0, 0.0], "rescale_t": 3.0},
}


def write_pipeline(folder: Path) -> None:
    """Models of the official sizes and types, and a DINOv2 ViT-L/14 with registers; all weights random."""
    for role, name in ROLES.items():
        (folder / "ckpts").mkdir(parents=True, exist_ok=True)
        write(*official_config(name), folder / "ckpts" / role)
    args: dict[str, Any] = {
        "models": {role: f"ckpts/{role}" for role in ROLES},
        "sparse_structure_sampler": SAMPLER,
        "slat_sampler": SAMPLER,
        "slat_normalization": {"mean": [0.0] * 8, "std": [1.0] * 8},
        "image_cond_model": str(_write_encoder(folder / "dino")),
    }
    text = json.dumps({"name": "TrellisImageTo3DPipeline", "args": args})
    (folder / "pipeline.json").write_text(text, encoding="utf-8")


def _write_encoder(folder: Path) -> Path:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    size = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 518}
    config = Dinov2WithRegistersConfig(**size, patch_size=14, num_register_tokens=4)
    Dinov2WithRegistersModel(config).save_pretrained(folder)
    image_conditioner(folder)  # fails here if the written files cannot be read
    return folder.resolve()


def measure(folder: Path, low_memory: bool) -> dict[str, Any]:
    """One object. A random structure would fill half the grid, so a shell of VOXELS voxels replaces the occupancy."""
    coords = torch.cat([torch.zeros(VOXELS["slat"], 1, dtype=torch.int32), shell(VOXELS["slat"])], 1)
    stages.occupied_coords = lambda logits: coords
    run = Runner.open(folder, low_memory=low_memory)
    image = Image.new("RGBA", (600, 600))
    ImageDraw.Draw(image).ellipse((100, 200, 500, 400), fill="red")
    prompt = run.prompt(lambda encoder: of_pictures(encoder, [("a disc", image)]))
    objects = run(Request(prompt), DECODERS)
    return {
        "mode": "low-memory" if low_memory else "default",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "voxels": VOXELS["slat"],
        "steps": {stage: recipe.steps for stage, recipe in run.recipes.items()},
        "mesh_faces": len(objects.decoded[DECODERS[0]][0].faces),
        "gaussians": len(objects.decoded[DECODERS[1]][0]),
        "peak_gib": peak_memory(run.device),
        "seconds": run.clock.seconds,
        "machine": machine(run.device),
        "versions": versions(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory and time of a full-size pipeline on a CPU.")
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--mode",
        choices=("default", "low-memory"),
        help="run this mode in this process; by default both, each in its own",
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    if not (given.folder / "pipeline.json").is_file():
        write_pipeline(given.folder)
    if given.mode is None:
        for mode in ("default", "low-memory"):
            command = [sys.executable, __file__, str(given.folder), "--mode", mode, "--out", str(given.out)]
            subprocess.run(command, check=True)
        return
    found = measure(given.folder, given.mode == "low-memory")
    given.out.mkdir(parents=True, exist_ok=True)
    target = given.out / f"generate-{given.mode}.json"
    target.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(
        f"{given.mode}: peak {found['peak_gib']['process']:.2f} GiB, {sum(found['seconds'].values()):.0f} s: {target}"
    )


if __name__ == "__main__":
    main()
