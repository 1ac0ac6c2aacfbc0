"""The second stage of ``fewstep teach``: targets from the catalogues, the VAE, the flow, its measure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from fewstep_shapes3d.data.prepared import PreparedSet
from fewstep_shapes3d.data.targets import make_targets
from rich.console import Console

from fewstep.errors import FewstepError
from fewstep_trellis.checkpoint import load_model, save_model
from fewstep_trellis.flow import load_as, load_frozen
from fewstep_trellis.latents import cache_folder, surface_latents
from fewstep_trellis.models import SLatEncoder, SLatGaussianDecoder, SLatMeshDecoder
from fewstep_trellis.teach import slat_gs, slat_vae
from fewstep_trellis.teach.config import TeachConfig
from fewstep_trellis.teach.describe import set_slat_guidance, write_pipeline
from fewstep_trellis.teach.flows import write_slat_initial
from fewstep_trellis.teach.loop import Log, curve
from fewstep_trellis.teach.slat_quality import channel_statistics, reconstruction

MODELS = {"encoder": "slat_encoder", "mesh": "slat_decoder_mesh", "gs": "slat_decoder_gs"}
FIRST_DECODER = "slat_vae_decoder"


def targets(config: TeachConfig, out: Path, overrides: list[str], resume: bool, console: Console) -> None:
    """Make what is missing of the decoders' targets (a megabyte an object, kept in the cache)."""
    from fewstep_shapes3d.data.command import shown

    if config.source is None:
        raise FewstepError(
            "source: got nothing; accepted: source=DIR, the folder of .sh3f catalogues the set is made of"
        )
    data = PreparedSet.load(config.root)
    with shown() as progress:
        make_targets(data, config.source, target_folder(config), config.workers, progress)
    console.print(f"targets of {len(data)} objects: {target_folder(config)}")


def target_folder(config: TeachConfig) -> Path:
    """Where the targets are: as configured, else in the cache, by the set's own digest."""
    if config.targets is not None:
        return config.targets
    files = PreparedSet.load(config.root).manifest["files"]
    return cache_folder() / f"targets-{files['objects.csv']['sha256'][:16]}"


def vae(config: TeachConfig, out: Path, overrides: list[str], resume: bool, console: Console) -> None:
    """Train encoder and mesh decoder together; save both in half precision, and ``pipeline.json``."""
    if _finished(out / "pipeline.json", out / "slat_vae.state", resume, console):
        return
    data, recipe = PreparedSet.load(config.root), config.slat_vae
    log = _log(out / "slat_vae.jsonl", recipe.steps, console)
    fresh = slat_vae.SlatVae(recipe, data.resolution)
    found = slat_vae.train(fresh, recipe, data, target_folder(config), out / "slat_vae.state", log)
    save_model(found.mesh, out / FIRST_DECODER, dtype=torch.float16)
    save_model(found.encoder, out / "slat_encoder", dtype=torch.float16)
    encoder = load_frozen(SLatEncoder, "slat_encoder", out / "slat_encoder")
    write_pipeline(out, *channel_statistics(surface_latents(data, encoder, mirror=True)))


def mesh(config: TeachConfig, out: Path, overrides: list[str], resume: bool, console: Console) -> None:
    """Train the mesh decoder further, beside the flow if one likes: the latents no longer change."""
    if _finished(out / "slat_decoder_mesh.json", out / "slat_mesh.state", resume, console):
        return
    data, recipe = PreparedSet.load(config.root), config.slat_mesh
    vae = slat_vae.SlatVae(config.slat_vae, data.resolution)
    vae.encoder = load_frozen(SLatEncoder, "slat_encoder", out / "slat_encoder")
    vae.mesh = load_as(SLatMeshDecoder, out / FIRST_DECODER)
    log = _log(out / "slat_mesh.jsonl", recipe.steps, console)
    found = slat_vae.train(vae, recipe, data, target_folder(config), out / "slat_mesh.state", log)
    save_model(found.mesh, out / "slat_decoder_mesh", dtype=torch.float16)


def gaussians(config: TeachConfig, out: Path, overrides: list[str], resume: bool, console: Console) -> None:
    """Train the Gaussian decoder on the encoder's latents."""
    if _finished(out / "slat_decoder_gs.json", out / "slat_gs.state", resume, console):
        return
    encoder, recipe = load_frozen(SLatEncoder, "slat_encoder", out / "slat_encoder"), config.slat_gs
    log = _log(out / "slat_gs.jsonl", recipe.steps, console)
    data = PreparedSet.load(config.root)
    found = slat_gs.train(recipe, encoder, data, target_folder(config), out / "slat_gs.state", log)
    save_model(found, out / "slat_decoder_gs", dtype=torch.float16)


def _finished(last: Path, state: Path, resume: bool, console: Console) -> bool:
    """Whether the file that is written last is there.

    Raises:
        FewstepError: it is, or the state of an unfinished run, and ``resume`` was not asked for.
    """
    last.parent.mkdir(parents=True, exist_ok=True)
    if (last.exists() or state.exists()) and not resume:
        got = last if last.exists() else state
        raise FewstepError(f"--out: {str(got)!r} is there already; accepted: another folder, or --resume")
    if last.exists():
        console.print(f"{last}: done before")
    return last.exists()


def _log(path: Path, steps: int, console: Console) -> Log:
    def tell(row: dict[str, float]) -> None:
        shown = "  ".join(f"{key} {value:.4f}" for key, value in row.items() if key not in ("step", "seconds"))
        console.print(f"{path.stem} {row['step'] + 1:.0f}/{steps}  {shown}  {row['seconds']:.0f} s", soft_wrap=True)

    return curve(path, tell)


def measure_vae(config: TeachConfig, out: Path, overrides: list[str], resume: bool, console: Console) -> None:
    """Reconstruction of held-out objects, into ``slat_vae_quality.json``."""
    kinds = {"encoder": SLatEncoder, "mesh": SLatMeshDecoder, "gs": SLatGaussianDecoder}
    parts: dict[str, Any] = {part: load_frozen(kind, MODELS[part], out / MODELS[part]) for part, kind in kinds.items()}
    data = PreparedSet.load(config.root)
    figures = reconstruction(
        parts["encoder"], parts["mesh"], parts["gs"], data, target_folder(config), config.measure_objects
    )
    recipe = config.model_dump(mode="json", include={"slat_vae", "slat_mesh", "slat_gs"})
    write(out / "slat_vae_quality.json", {**{k: round(v, 5) for k, v in figures.items()}, **recipe})
    console.print("  ".join(f"{key} {value:.3f}" for key, value in figures.items()))


def flow(config: TeachConfig, out: Path, overrides: list[str], resume: bool, console: Console) -> None:
    """Train the flow by the engine that distils, and save its moving average in half precision."""
    from fewstep.config.resolve import resolve_stages
    from fewstep.engine.session import start

    data = PreparedSet.load(config.root)
    encoder = load_frozen(SLatEncoder, "slat_encoder", out / "slat_encoder")
    shape = {"channels": encoder.args["latent_channels"], "cond_channels": data.channels, "resolution": data.resolution}
    if not (out / "slat_initial.safetensors").exists():
        write_slat_initial(config.slat_flow, out / "slat_initial", **shape)
    paths = {
        "backbone.teacher": out / "slat_initial",
        "backbone.decoder": out / "slat_decoder_mesh",
        "data.encoder": out / "slat_encoder",
        "data.root": config.root,
    }
    texts = [f"{key}={json.dumps(str(path))}" for key, path in paths.items()]
    (resolved,) = resolve_stages("flow-matching", "trellis-slat", preset="slat", layers=[*texts, *overrides]).values()
    run = start(resolved, out / "slat-flow", resume=resume and (out / "slat-flow").exists(), console=console)
    save_model(load_model(run / "student" / "model"), out / "slat_flow", dtype=torch.float16)
    console.print(f"teacher: {out / 'slat_flow'}.safetensors")


def measure_flow(config: TeachConfig, out: Path, overrides: list[str], resume: bool, console: Console) -> None:
    """The condition test at each guidance scale, into ``slat_quality.json``; the best goes into ``pipeline.json``."""
    from fewstep_trellis.slat import StructuredLatentFlow
    from fewstep_trellis.slat_dataset import PreparedLatents, PreparedLatentsConfig
    from fewstep_trellis.teach.condition import slat_condition_test

    teacher = StructuredLatentFlow.teacher(StructuredLatentFlow.Config(teacher=out / "slat_flow"))
    data = PreparedLatents(PreparedLatentsConfig(root=config.root, encoder=out / "slat_encoder"), teacher.backbone)
    decoder = load_frozen(SLatGaussianDecoder, "slat_decoder_gs", out / "slat_decoder_gs")
    rows = []
    for guidance in config.guidances:
        objects = config.measure_objects
        rows.append(slat_condition_test(teacher, decoder, data, guidance=guidance, objects=objects, steps=25))
        console.print("  ".join(f"{key} {value:.3f}" for key, value in rows[-1].items()))
        write(out / "slat_quality.json", {"seed": 0, "rows": rows})
    best = min(rows, key=lambda row: row["colour_error_own_picture"])
    set_slat_guidance(out, best["guidance"])


def write(path: Path, value: object) -> None:
    """JSON, indented."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
