"""The second stage of ``fewstep teach``: targets from the catalogues, the VAE, the flow, its measure."""

from __future__ import annotations

from pathlib import Path

import torch
from fewstep_shapes3d.data.command import shown
from fewstep_shapes3d.data.targets import make_targets
from rich.console import Console

from fewstep.engine.progress import counting
from fewstep.errors import FewstepError
from fewstep_trellis.checkpoint import save_model
from fewstep_trellis.flow import load_as, load_frozen
from fewstep_trellis.latents import cache_folder, surface_latents
from fewstep_trellis.models import SLatEncoder, SLatGaussianDecoder, SLatMeshDecoder
from fewstep_trellis.slat import StructuredLatentFlow
from fewstep_trellis.slat_dataset import PreparedLatents, PreparedLatentsConfig
from fewstep_trellis.teach import slat_gs, slat_vae
from fewstep_trellis.teach.condition import slat_condition_test
from fewstep_trellis.teach.config import Job
from fewstep_trellis.teach.describe import set_slat_guidance, write_pipeline
from fewstep_trellis.teach.flows import train_flow, write_slat_initial
from fewstep_trellis.teach.loop import Log, curve
from fewstep_trellis.teach.slat_quality import channel_statistics, reconstruction

FIRST_DECODER = "slat_vae_decoder"


def targets(job: Job) -> None:
    """Make what is missing of the decoders' targets (a megabyte an object, kept in the cache)."""
    config = job.config
    if config.source is None:
        raise FewstepError(
            "source: got nothing; accepted: source=DIR, the folder of .sh3f catalogues the set is made of"
        )
    with shown() as progress:
        make_targets(job.data, config.source, target_folder(job), config.workers, progress)
    job.console.print(f"targets of {len(job.data)} objects: {target_folder(job)}")


def target_folder(job: Job) -> Path:
    """Where the targets are: as configured, else in the cache, by the set's own digest."""
    if job.config.targets is not None:
        return job.config.targets
    return cache_folder() / f"targets-{job.data.manifest['files']['objects.csv']['sha256'][:16]}"


def vae(job: Job) -> None:
    """Train encoder and mesh decoder together; save both in half precision, and ``pipeline.json``."""
    out, recipe = job.out, job.config.slat_vae
    if _finished(job, out / "pipeline.json", out / "slat_vae.state"):
        return
    fresh = slat_vae.SlatVae(recipe, job.data.resolution).to(job.device)
    log = _log(out / "slat_vae.jsonl", recipe.steps, job.console)
    found = slat_vae.train(fresh, recipe, job.data, target_folder(job), out / "slat_vae.state", log)
    save_model(found.mesh, out / FIRST_DECODER, dtype=torch.float16)
    save_model(found.encoder, out / "slat_encoder", dtype=torch.float16)
    with counting(job.console) as count:
        latents = surface_latents(job.data, _encoder(job), mirror=True, progress=count)
    write_pipeline(out, *channel_statistics(latents))


def mesh(job: Job) -> None:
    """Train the mesh decoder further, beside the flow if one likes: the latents no longer change."""
    out, recipe = job.out, job.config.slat_mesh
    if _finished(job, out / "slat_decoder_mesh.json", out / "slat_mesh.state"):
        return
    vae = slat_vae.SlatVae(job.config.slat_vae, job.data.resolution)
    vae.encoder, vae.mesh = _encoder(job), load_as(SLatMeshDecoder, out / FIRST_DECODER)
    log = _log(out / "slat_mesh.jsonl", recipe.steps, job.console)
    found = slat_vae.train(vae.to(job.device), recipe, job.data, target_folder(job), out / "slat_mesh.state", log)
    save_model(found.mesh, out / "slat_decoder_mesh", dtype=torch.float16)


def gaussians(job: Job) -> None:
    """Train the Gaussian decoder on the encoder's latents."""
    out, recipe = job.out, job.config.slat_gs
    if _finished(job, out / "slat_decoder_gs.json", out / "slat_gs.state"):
        return
    log = _log(out / "slat_gs.jsonl", recipe.steps, job.console)
    found = slat_gs.train(recipe, _encoder(job), job.data, target_folder(job), out / "slat_gs.state", log)
    save_model(found, out / "slat_decoder_gs", dtype=torch.float16)


def _encoder(job: Job) -> SLatEncoder:
    return load_frozen(SLatEncoder, "slat_encoder", job.out / "slat_encoder").to(job.device)


def _finished(job: Job, last: Path, state: Path) -> bool:
    """Whether the file that is written last is there.

    Raises:
        FewstepError: it is, or checkpoints of an unfinished run, and ``resume`` was not asked for.
    """
    last.parent.mkdir(parents=True, exist_ok=True)
    if (last.exists() or state.exists()) and not job.resume:
        got = last if last.exists() else state
        raise FewstepError(f"--out: {str(got)!r} is there already; accepted: another folder, or --resume")
    if last.exists():
        job.console.print(f"{last}: done before")
    return last.exists()


def _log(path: Path, steps: int, console: Console) -> Log:
    def tell(row: dict[str, float]) -> None:
        shown = "  ".join(f"{key} {value:.4f}" for key, value in row.items() if key not in ("step", "seconds"))
        console.print(f"{path.stem} {row['step'] + 1:.0f}/{steps}  {shown}  {row['seconds']:.0f} s", soft_wrap=True)

    return curve(path, tell)


def measure_vae(job: Job) -> None:
    """Reconstruction of held-out objects, into ``slat_vae_quality.json``."""
    mesh = load_frozen(SLatMeshDecoder, "slat_decoder_mesh", job.out / "slat_decoder_mesh").to(job.device)
    gs = load_frozen(SLatGaussianDecoder, "slat_decoder_gs", job.out / "slat_decoder_gs").to(job.device)
    figures = reconstruction(_encoder(job), mesh, gs, job.data, target_folder(job), job.config.measure_objects)
    recipe = job.config.model_dump(mode="json", include={"slat_vae", "slat_mesh", "slat_gs"})
    job.write("slat_vae_quality.json", {**{k: round(v, 5) for k, v in figures.items()}, **recipe})
    job.show(figures)


def flow(job: Job) -> None:
    """Train the structured-latent flow on the encoder's latents."""
    data, channels = job.data, _encoder(job).args["latent_channels"]
    shape = {"channels": channels, "cond_channels": data.channels, "resolution": data.resolution}
    if not (job.out / "slat_initial.safetensors").exists():
        write_slat_initial(job.config.slat_flow, job.out / "slat_initial", **shape)
    names = {"initial": "slat_initial", "encoder": "slat_encoder", "decoder": "slat_decoder_mesh"}
    train_flow(job, "trellis-slat", **names, run="slat-flow", name="slat_flow", preset="slat")


def measure_flow(job: Job) -> None:
    """The condition test at each guidance scale, into ``slat_quality.json``; the best goes into ``pipeline.json``."""
    out, config = job.out, job.config
    teacher = StructuredLatentFlow.teacher(StructuredLatentFlow.Config(teacher=out / "slat_flow")).to(job.device)
    data = PreparedLatents(PreparedLatentsConfig(root=config.root, encoder=out / "slat_encoder"), teacher.backbone)
    decoder = load_frozen(SLatGaussianDecoder, "slat_decoder_gs", out / "slat_decoder_gs").to(job.device)
    rows = []
    for guidance in config.guidances:
        row = slat_condition_test(
            teacher, decoder, data, guidance=guidance, objects=config.measure_objects, steps=25, device=job.device
        )
        rows.append(row)
        job.show(row)
        job.write("slat_quality.json", {"seed": 0, "rows": rows})
    best = min(rows, key=lambda row: row["colour_error_own_picture"])
    set_slat_guidance(out, best["guidance"])
