"""Full-size flows on a CPU: ``python benchmarks/fullsize/fullsize.py ss|slat|trellis2-shape``.

Writes a pair of files in the official format with random weights, loads them like any checkpoint and takes one Euler
step. README.md says what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from fewstep_trellis.backbone import StructureFlow
from fewstep_trellis.checkpoint import build_model, load_model
from fewstep_trellis.flow import Flow
from fewstep_trellis.models import MODELS
from fewstep_trellis.slat import StructuredLatentFlow
from fewstep_trellis2.configs import FOLDER
from fewstep_trellis2.latents import ShapeStage
from memory import Phase, measured
from safetensors.torch import save_file
from torch import Tensor

from fewstep.benchmark.run import machine
from fewstep.config.run import versions
from fewstep.core.batch import Condition
from fewstep.core.layout import Dense, Layout, Packed
from fewstep.core.objective import Step
from fewstep.core.samplers import euler
from fewstep.core.times import step_grid

RESULTS = Path(__file__).parent / "results"
COMMON = {"model_channels": 1024, "cond_channels": 1024, "num_blocks": 24, "num_heads": 16, "mlp_ratio": 4}
COMMON |= {"in_channels": 8, "out_channels": 8, "pe_mode": "ape", "qk_rms_norm": True, "use_fp16": True}
STRUCTURE = {"resolution": 16, "patch_size": 1}
LATENTS = {"resolution": 64, "patch_size": 2, "num_io_res_blocks": 2, "io_block_channels": [128]}
CONFIGS: dict[str, tuple[type[Flow], str, dict[str, Any]]] = {
    "ss": (StructureFlow, "SparseStructureFlowModel", COMMON | STRUCTURE),
    "slat": (StructuredLatentFlow, "ElasticSLatFlowModel", COMMON | LATENTS),
    "trellis2-shape": (
        ShapeStage,
        *json.loads((FOLDER / "slat_flow_img2shape_dit_1_3B_512_bf16.json").read_text(encoding="utf-8")).values(),
    ),
}
VOXELS = {"slat": 8192, "trellis2-shape": 1024}


@dataclass
class Result:
    """What one run measured."""

    stage: str
    model: str
    parameters: int
    file_mib: float
    rows: int
    steps: int
    machine: str
    load_average: float
    versions: dict[str, str]
    date: str
    phases: list[Phase] = field(default_factory=list)


def random_tensors(
    name: str,
    args: dict[str, Any],
    seed: int = 0,
    device: torch.device | str = "cpu",
    models: Mapping[str, Any] = MODELS,
) -> Iterator[tuple[str, Tensor]]:
    """The model's tensors in the types of the official files, one at a time; the model itself is never built."""
    generator = torch.Generator(device).manual_seed(seed)
    for key, like in build_model(name, args, "meta", models).state_dict().items():
        x = torch.randn(like.shape, generator=generator, device=device)
        x = 1 + 0.1 * x if key.endswith("gamma") else x * (x[0].numel() ** -0.5 if x.ndim > 1 else 0.1)
        yield key, x.to(like.dtype)


def write(name: str, args: dict[str, Any], stem: Path, models: Mapping[str, Any] = MODELS) -> int:
    """Write a pair of files in the official format; returns the number of parameters."""
    state = dict(random_tensors(name, args, models=models))
    save_file(state, stem.with_suffix(".safetensors"), metadata={"format": "pt"})
    stem.with_suffix(".json").write_text(json.dumps({"name": name, "args": args}, indent=4), encoding="utf-8")
    return sum(x.numel() for key, x in state.items() if key != "pos_emb")


def shell(count: int, size: int = 64) -> Tensor:
    """[count, 3] distinct voxels on a sphere-like surface, as sparse as those of an object."""
    places = torch.cartesian_prod(*[torch.arange(size)] * 3)
    distance = (places.float() - (size - 1) / 2).norm(dim=1)
    return places[(distance - 0.4 * size).abs().argsort()[:count]].int()


def sample(stage: str, args: dict[str, Any]) -> tuple[Tensor, Layout]:
    """Noise of one object and its layout."""
    generator = torch.Generator().manual_seed(1)
    if stage == "ss":
        return torch.randn(1, 8, 16, 16, 16, generator=generator), Dense(1)
    count, places = VOXELS[stage], shell(VOXELS[stage], args["resolution"])
    return torch.randn(count, args["in_channels"], generator=generator), Packed.of_lengths([count], places)


def load(flow: type[Flow], stem: Path) -> Flow:
    """Load as the pipeline does on a CPU: half-precision blocks are converted to float32."""
    model: Any = load_model(stem, models=flow.models).eval().requires_grad_(False)
    model.convert_to_fp32()
    return flow(model)


def measure(stage: str, steps: int) -> Result:
    """Write, load and step, with time and peak memory of each."""
    flow_class, name, args = CONFIGS[stage]
    now, load_average = datetime.now(timezone.utc).isoformat(timespec="seconds"), round(os.getloadavg()[0], 1)
    noise, layout = sample(stage, args)
    rows = len(noise) if isinstance(layout, Packed) else 16**3
    with tempfile.TemporaryDirectory() as folder:
        stem = Path(folder) / "model"
        with measured("write the file") as written:
            parameters = write(name, args, stem, flow_class.models)
        size = stem.with_suffix(".safetensors").stat().st_size / 2**20
        with measured("load it, blocks to float32") as loaded:
            flow = load(flow_class, stem)
        cond = Condition(torch.randn(1, flow.tokens, 1024, generator=torch.Generator().manual_seed(2)))
        step = Step(0, flow.interpolant)
        with measured(f"{steps} Euler step" + "s" * (steps > 1)) as stepped:
            out = euler(flow, noise, cond, layout, step_grid(steps), step)
    assert out.shape == noise.shape
    assert bool(out.isfinite().all())
    host = machine(torch.device("cpu")), load_average, versions()
    return Result(stage, name, parameters, round(size, 1), rows, steps, *host, now, [written, loaded, stepped])


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and peak memory of a full-size flow on a CPU.")
    parser.add_argument("stage", choices=CONFIGS)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    result = measure(given.stage, given.steps)
    given.out.mkdir(parents=True, exist_ok=True)
    target = given.out / f"{given.stage}.json"
    target.write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
    for phase in result.phases:
        times = f"{phase.seconds:.1f} s ({phase.cpu_seconds:.1f} s of processor)"
        print(f"{phase.name}: {times}, peak {phase.peak_mib / 1024:.2f} GiB")
    print(target)


if __name__ == "__main__":
    main()
