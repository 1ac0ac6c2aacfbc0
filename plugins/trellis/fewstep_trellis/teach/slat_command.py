"""The second stage of ``fewstep teach``: targets from the source files, the VAE, the flow, its measure."""

from __future__ import annotations

from pathlib import Path

import torch
from fewstep_shapes3d.data.targets import make_targets

from fewstep.engine.progress import counting
from fewstep.files import cache_folder
from fewstep_trellis.checkpoint import save_model
from fewstep_trellis.flow import load_as, load_frozen
from fewstep_trellis.latents import surface_latents
from fewstep_trellis.models import SLatEncoder, SLatFlowModel, SLatGaussianDecoder, SLatMeshDecoder
from fewstep_trellis.slat import StructuredLatentFlow
from fewstep_trellis.slat_dataset import PreparedLatents, PreparedLatentsConfig
from fewstep_trellis.teach import slat_gs, slat_vae
from fewstep_trellis.teach.condition import slat_condition_test
from fewstep_trellis.teach.config import Job
from fewstep_trellis.teach.describe import set_slat_guidance, write_pipeline
from fewstep_trellis.teach.flows import SLAT_FLOW, start_from, train_flow, write_slat_initial
from fewstep_trellis.teach.loop import recorded
from fewstep_trellis.teach.slat_quality import channel_statistics, reconstruction
from fewstep_trellis.weightfiles import tensor_file

FIRST_DECODER = "slat_vae_decoder"


def targets(job: Job) -> None:
    """Make what is missing of the decoders' targets (a megabyte per object, by default kept in the cache)."""
    config = job.config
    assert config.source is not None  # checked before any stage starts
    with counting(job.console) as progress:
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
    if job.finished("slat-vae"):
        return
    fresh = slat_vae.SlatVae(recipe, job.data.resolution).to(job.device)
    with recorded(out / "slat_vae.jsonl", recipe.steps, job.console) as log:
        found = slat_vae.train(fresh, recipe, job.data, target_folder(job), out / "slat_vae.state", log)
    save_model(found.mesh, out / FIRST_DECODER, dtype=torch.float16)
    save_model(found.encoder, out / "slat_encoder", dtype=torch.float16)
    with counting(job.console) as count:
        latents = surface_latents(job.data, _encoder(job), mirror=True, progress=count)
    write_pipeline(out, *channel_statistics(latents))


def mesh(job: Job) -> None:
    """Train the mesh decoder further. The latents no longer change, so the flow can be trained meanwhile."""
    out, recipe = job.out, job.config.slat_mesh
    if job.finished("slat-mesh"):
        return
    vae = slat_vae.SlatVae(job.config.slat_vae, job.data.resolution)
    vae.encoder, vae.mesh = _encoder(job), load_as(SLatMeshDecoder, out / FIRST_DECODER)
    with recorded(out / "slat_mesh.jsonl", recipe.steps, job.console) as log:
        found = slat_vae.train(vae.to(job.device), recipe, job.data, target_folder(job), out / "slat_mesh.state", log)
    save_model(found.mesh, out / "slat_decoder_mesh", dtype=torch.float16)


def gaussians(job: Job) -> None:
    """Train the Gaussian decoder on the encoder's latents."""
    out, recipe = job.out, job.config.slat_gs
    if job.finished("slat-gs"):
        return
    with recorded(out / "slat_gs.jsonl", recipe.steps, job.console) as log:
        found = slat_gs.train(recipe, _encoder(job), job.data, target_folder(job), out / "slat_gs.state", log)
    save_model(found, out / "slat_decoder_gs", dtype=torch.float16)


def _encoder(job: Job) -> SLatEncoder:
    return load_frozen(SLatEncoder, "slat_encoder", job.out / "slat_encoder").to(job.device)


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
    initial = job.out / SLAT_FLOW.initial
    if not tensor_file(initial).exists() and not start_from(SLatFlowModel, job.config.slat_flow, initial, **shape):
        write_slat_initial(job.config.slat_flow, initial, **shape)
    train_flow(job, SLAT_FLOW)


def measure_flow(job: Job) -> None:
    """The condition test at each guidance scale, into ``slat_quality.json``; the best goes into ``pipeline.json``."""
    out, config = job.out, job.config
    teacher = StructuredLatentFlow.teacher(StructuredLatentFlow.Config(teacher=out / "slat_flow")).to(job.device)
    data = PreparedLatents(PreparedLatentsConfig(root=config.root, encoder=out / "slat_encoder"), teacher.backbone)
    decoder = load_frozen(SLatGaussianDecoder, "slat_decoder_gs", out / "slat_decoder_gs").to(job.device)
    rows = []
    with counting(job.console) as count:
        for number, guidance in enumerate(config.guidances):
            count(number, len(config.guidances), "guidance scales")
            row = slat_condition_test(
                teacher, decoder, data, guidance=guidance, objects=config.measure_objects, steps=25, device=job.device
            )
            rows.append(row)
            job.write("slat_quality.json", {"seed": 0, "rows": rows})
    for row in rows:
        job.show(row)
    best = min(rows, key=lambda row: row["colour_error_own_picture"])
    set_slat_guidance(out, best["guidance"])
