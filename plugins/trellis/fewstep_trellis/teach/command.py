"""``fewstep teach``: for each stage a VAE, then the flow teacher by the same engine that distils, then its measure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from fewstep.config.base import merge, parse_override, validate
from fewstep.errors import FewstepError, unknown
from fewstep_trellis.teach.config import OWN, TeachConfig
from fewstep_trellis.teach.flows import write_structure_initial
from fewstep_trellis.teach.vae import teach_vae

STRUCTURE = ("vae", "flow", "measure")
LATENTS = ("targets", "slat-vae", "slat-mesh", "slat-gs", "slat-measure-vae", "slat-flow", "slat-measure")
GROUPS = {"all": STRUCTURE, "slat": LATENTS}
STAGES = (*STRUCTURE, *LATENTS, *GROUPS)


def teach(stage: str, out: Path, overrides: list[str], *, resume: bool, console: Console) -> None:
    """Run one stage, all of the structure's ("all") or of the structured latents' ("slat") into ``out``.

    The first make ``ss_encoder``, ``ss_decoder``, ``ss_flow`` and ``quality.json``; the second ``slat_encoder``,
    ``slat_decoder_mesh``, ``slat_decoder_gs``, ``slat_flow``, ``pipeline.json`` and ``slat_*quality.json``.

    Raises:
        FewstepError: for an unknown stage or key, or a folder that exists without ``resume``.
    """
    if stage not in STAGES:
        raise unknown("stage", stage, STAGES)
    mine = [text for text in overrides if text.partition("=")[0].strip().partition(".")[0] in OWN]
    config = validate(TeachConfig, merge(*(parse_override(text) for text in mine)))
    rest = [text for text in overrides if text not in mine]
    for name in GROUPS.get(stage, (stage,)):
        _runner(name)(config, out, rest, resume, console)


def _runner(name: str) -> Callable[[TeachConfig, Path, list[str], bool, Console], None]:
    from fewstep_trellis.teach import slat_command as slat

    runners = (
        _vae,
        _flow,
        _measure,
        slat.targets,
        slat.vae,
        slat.mesh,
        slat.gaussians,
        slat.measure_vae,
        slat.flow,
        slat.measure_flow,
    )
    return dict(zip((*STRUCTURE, *LATENTS), runners, strict=True))[name]


def _vae(config: TeachConfig, out: Path, overrides: list[str], resume: bool, console: Console) -> None:
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
    from fewstep_shapes3d.data.prepared import PreparedSet

    from fewstep.config.resolve import resolve_stages
    from fewstep.engine.session import start
    from fewstep_trellis.checkpoint import load_model, save_model
    from fewstep_trellis.dataset import load_encoder

    prepared, encoder = PreparedSet.load(config.root), load_encoder(out / "ss_encoder")
    latent = encoder.encode(prepared.occupancy(prepared.train[:1]))[0]
    shape = {"resolution": latent.shape[-1], "channels": latent.shape[1], "cond_channels": prepared.channels}
    if not (out / "initial.safetensors").exists():
        write_structure_initial(config.flow, out / "initial", **shape)
    paths = {
        "backbone.teacher": out / "initial",
        "backbone.decoder": out / "ss_decoder",
        "data.encoder": out / "ss_encoder",
        "data.root": config.root,
    }
    texts = [f"{key}={json.dumps(str(path))}" for key, path in paths.items()]
    (resolved,) = resolve_stages("flow-matching", "trellis", layers=[*texts, *overrides]).values()
    run = start(resolved, out / "flow", resume=resume and (out / "flow").exists(), console=console)
    save_model(load_model(run / "student" / "model"), out / "ss_flow", dtype=_half())
    console.print(f"teacher: {out / 'ss_flow'}.safetensors")


def _half() -> Any:
    import torch

    return torch.float16


def _measure(config: TeachConfig, out: Path, overrides: list[str], resume: bool, console: Console) -> None:
    """The condition test at each guidance scale, into ``quality.json``."""
    from fewstep_trellis.backbone import StructureFlow, load_decoder
    from fewstep_trellis.dataset import PreparedConfig, PreparedObjects
    from fewstep_trellis.teach.condition import structure_condition_test

    teacher = StructureFlow.teacher(StructureFlow.Config(teacher=out / "ss_flow"))
    data = PreparedObjects(PreparedConfig(root=config.root, encoder=out / "ss_encoder"), teacher.backbone)
    rows = []
    for guidance in config.guidances:
        rows.append(structure_condition_test(teacher, load_decoder(out / "ss_decoder"), data, guidance=guidance))
        console.print("  ".join(f"{key} {value:.3f}" for key, value in rows[-1].items()))
    _write(out / "quality.json", {"steps": 25, "seed": 0, "rows": rows})


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
