"""``fewstep teach``: the structure VAE, then the flow teacher by the same engine that distils, then its measure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.console import Console

from fewstep.config import Strict, merge, parse_override, validate
from fewstep.errors import FewstepError, unknown
from fewstep_trellis.shipped import SWEETHOME3D
from fewstep_trellis.teach.initial import FlowConfig, write_initial
from fewstep_trellis.teach.vae import VaeConfig, teach_vae

STAGES = ("vae", "flow", "measure", "all")
OWN = ("root", "vae", "flow", "guidances")


class TeachConfig(Strict):
    """Keys of ``fewstep teach``; ``train.*``, ``objective.*`` and ``data.*`` go to the engine as in ``distill``."""

    root: Path = Field(SWEETHOME3D, description="prepared set")
    vae: VaeConfig = Field(default_factory=VaeConfig, description="recipe of the structure VAE")
    flow: FlowConfig = Field(default_factory=FlowConfig, description="size of the structure flow")
    guidances: tuple[float, ...] = Field((1.0, 2.0, 3.0, 5.0), description="guidance scales that are measured")


def teach(stage: str, out: Path, overrides: list[str], *, resume: bool, console: Console) -> None:
    """Run one stage or all into ``out``: ``ss_encoder``, ``ss_decoder``, ``ss_flow`` and ``quality.json``.

    Raises:
        FewstepError: for an unknown stage or key, or a folder that exists without ``resume``.
    """
    if stage not in STAGES:
        raise unknown("stage", stage, STAGES)
    mine = [text for text in overrides if text.partition("=")[0].strip().partition(".")[0] in OWN]
    config = validate(TeachConfig, merge(*(parse_override(text) for text in mine)))
    if stage in ("vae", "all"):
        _vae(config, out, resume, console)
    if stage in ("flow", "all"):
        _flow(config, out, [text for text in overrides if text not in mine], resume, console)
    if stage in ("measure", "all"):
        _measure(config, out, console)


def _vae(config: TeachConfig, out: Path, resume: bool, console: Console) -> None:
    if (out / "ss_decoder.safetensors").exists():
        if not resume:
            raise FewstepError(f"--out: {str(out)!r} holds a VAE already; accepted: another folder, or --resume")
        console.print("VAE: done before")
        return

    def log(row: dict[str, float]) -> None:
        if row["step"] % 20 == 0:
            shown = "  ".join(f"{key} {row[key]:.4f}" for key in ("bce", "dice", "kl"))
            console.print(f"VAE {row['step'] + 1:.0f}/{config.vae.steps}  {shown}  {row['seconds']:.0f} s")

    figures = teach_vae(config.vae, config.root, out, log)
    _write(out / "vae_quality.json", {**figures, "recipe": config.vae.model_dump(mode="json")})
    console.print(f"VAE: reconstruction IoU {figures['test_iou']:.3f} held out, {figures['train_iou']:.3f} trained on")


def _flow(config: TeachConfig, out: Path, overrides: list[str], resume: bool, console: Console) -> None:
    from fewstep.run import resolve, start
    from fewstep_trellis.checkpoint import load_model, save_model
    from fewstep_trellis.data.prepared import PreparedSet
    from fewstep_trellis.dataset import load_encoder

    prepared, encoder = PreparedSet.load(config.root), load_encoder(out / "ss_encoder")
    latent = encoder.encode(prepared.occupancy(prepared.train[:1]))[0]
    shape = {"resolution": latent.shape[-1], "channels": latent.shape[1], "cond_channels": prepared.channels}
    if not (out / "initial.safetensors").exists():
        write_initial(config.flow, out / "initial", **shape)
    paths = {
        "backbone.teacher": out / "initial",
        "backbone.decoder": out / "ss_decoder",
        "data.encoder": out / "ss_encoder",
        "data.root": config.root,
    }
    texts = [f"{key}={json.dumps(str(path))}" for key, path in paths.items()]
    resolved = resolve("flow-matching", "trellis", overrides=[*texts, *overrides])
    run = start(resolved, out / "flow", resume=resume and (out / "flow").exists(), console=console)
    save_model(load_model(run / "student" / "model"), out / "ss_flow", dtype=_half())
    console.print(f"teacher: {out / 'ss_flow'}.safetensors")


def _half() -> Any:
    import torch

    return torch.float16


def _measure(config: TeachConfig, out: Path, console: Console) -> None:
    """The condition test at each guidance scale, into ``quality.json``."""
    from fewstep_trellis.backbone import StructureFlow, load_decoder
    from fewstep_trellis.dataset import PreparedConfig, PreparedObjects
    from fewstep_trellis.teach.quality import condition_test

    teacher = StructureFlow.teacher(StructureFlow.Config(teacher=out / "ss_flow"))
    data = PreparedObjects(PreparedConfig(root=config.root, encoder=out / "ss_encoder"), teacher.backbone)
    rows = []
    for guidance in config.guidances:
        rows.append(condition_test(teacher, load_decoder(out / "ss_decoder"), data, guidance=guidance))
        console.print("  ".join(f"{key} {value:.3f}" for key, value in rows[-1].items()))
    _write(out / "quality.json", {"steps": 25, "seed": 0, "rows": rows})


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
