"""``fewstep teach``: for each stage a VAE, the flow teacher (trained by the engine that distils), and its measure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from fewstep_shapes3d.data.targets import matching

from fewstep.console import Console, say, spinner
from fewstep.engine.device import autocast, pick_device
from fewstep.engine.progress import counting
from fewstep.errors import FewstepError, invalid, unknown
from fewstep.files import Unwritable, check_place
from fewstep_trellis.backbone import StructureFlow, load_decoder
from fewstep_trellis.checkpoint import save_model
from fewstep_trellis.dataset import PreparedConfig, PreparedObjects, load_encoder
from fewstep_trellis.flow import load_as
from fewstep_trellis.models import SparseStructureDecoder, SparseStructureEncoder, SparseStructureFlowModel
from fewstep_trellis.teach import slat_command as slat
from fewstep_trellis.teach.condition import structure_condition_test
from fewstep_trellis.teach.config import Job
from fewstep_trellis.teach.decoder import train_decoder
from fewstep_trellis.teach.flows import STRUCTURE_FLOW, start_from, train_flow, write_structure_initial
from fewstep_trellis.teach.keys import Keys, show_keys
from fewstep_trellis.teach.loop import LoopConfig, recorded
from fewstep_trellis.teach.vae import FIRST_DECODER, quality, teach_vae
from fewstep_trellis.weightfiles import tensor_file


def teach(
    stage: str,
    out: Path,
    overrides: list[str],
    *,
    device: str = "auto",
    resume: bool = False,
    dry_run: bool = False,
    help_config: bool = False,
    console: Console,
) -> None:
    """Run one stage, or all of the structure's ("all") or of the structured latents' ("slat"), into ``out``.

    The structure's make ``ss_encoder``, ``ss_decoder``, ``ss_flow`` and ``quality.json``; the structured latents'
    ``slat_encoder``, ``slat_decoder_mesh``, ``slat_decoder_gs``, ``slat_flow``, ``pipeline.json`` and
    ``slat_*quality.json``.

    Args:
        resume: go on in ``out``, with the keys it was started with.
        dry_run: print the config, check what it names and start nothing.
        help_config: print every key.

    Raises:
        FewstepError: for an unknown stage, key or device, or a folder that exists without ``resume``; before any stage
            starts.
    """
    if stage not in STAGES:
        raise unknown("--stage", stage, STAGES)
    chosen = GROUPS.get(stage, (stage,))
    if help_config:
        return show_keys(chosen[0] in STRUCTURE, console)
    keys, found = Keys.read(chosen[0] in STRUCTURE, overrides, out, resume), pick_device(device, "--device")
    job = Job(keys.config, out, keys.engine, found, resume, console)
    if dry_run:
        keys.show(out, found, console)
        return check(job, chosen)
    train = keys.flow(out, found).config.train  # refuse now what the flow's run would refuse hours later
    autocast(train.precision, pick_device(train.device))
    check(job, chosen)
    keys.record(out)
    try:
        for number, name in enumerate(chosen, 1):
            say(console, f"stage {name} ({number} of {len(chosen)})")
            RUNNERS[name](job)
    except Unwritable as error:
        raise FewstepError(f"{error}; to go on when there is room: the same command with --resume") from error


def check(job: Job, stages: Sequence[str]) -> None:
    """Refuse what can be refused before the first stage starts.

    Raises:
        FewstepError: naming the option or key.
    """
    check_place("--out", job.out)
    for stage in stages:
        job.check_files(stage, stages)
    if "targets" in stages:
        if job.config.source is None:
            raise FewstepError("source: got nothing; accepted: source=DIR, the files the set is made of")
        matching(job.data, job.config.source)
    for line in job.data.left_out:  # reads the set
        say(job.console, line)
    if job.out.exists() and not job.out.is_dir():
        raise invalid("--out", str(job.out), "a folder")


def vae(job: Job) -> None:
    """Train the structure autoencoder; save both halves in half precision, and their reconstruction quality."""
    out, recipe = job.out, job.config.vae
    if job.finished("vae"):
        return
    with recorded(out / "vae.jsonl", recipe.steps, job.console) as log:
        encoder, first = teach_vae(recipe, job.data, out, job.device, log)
    measure_reconstruction(job, encoder, first, "vae_quality.json", recipe)


def decoder(job: Job) -> None:
    """Train the structure decoder further, on noisy latents; save it in half precision, and its quality."""
    out, recipe = job.out, job.config.decoder
    if job.finished("decoder"):
        return
    encoder = load_encoder(out / "ss_encoder").to(job.device)
    first = load_as(SparseStructureDecoder, out / FIRST_DECODER).to(job.device)
    with recorded(out / "decoder.jsonl", recipe.steps, job.console) as log:
        found = train_decoder(recipe, encoder, first, job.data, out / "decoder.state", log)
    save_model(found, out / "ss_decoder", dtype=torch.float16)
    measure_reconstruction(job, encoder, found, "decoder_quality.json", recipe)


def measure_reconstruction(
    job: Job, encoder: SparseStructureEncoder, decoder: SparseStructureDecoder, file: str, recipe: LoopConfig
) -> None:
    """Show how well the set's objects are reconstructed, and write it with the recipe into ``file``."""
    with spinner(job.console, "measuring the reconstruction"):
        figures = quality(encoder, decoder, job.data)
    job.write(file, {**figures, "recipe": recipe.model_dump(mode="json")})
    job.show(figures)


def flow(job: Job) -> None:
    """Train the structure flow on the encoder's latents."""
    data, encoder = job.data, load_encoder(job.out / "ss_encoder")
    latent = encoder.encode(data.occupancy(data.train[:1]))[0]
    shape = {"resolution": latent.shape[-1], "channels": latent.shape[1], "cond_channels": data.channels}
    initial = job.out / STRUCTURE_FLOW.initial
    if not tensor_file(initial).exists() and not start_from(
        SparseStructureFlowModel, job.config.flow, initial, **shape
    ):
        write_structure_initial(job.config.flow, initial, **shape)
    train_flow(job, STRUCTURE_FLOW)


def measure(job: Job) -> None:
    """Reconstruction by the autoencoder, and the condition test at each guidance scale, into ``quality.json``."""
    teacher = StructureFlow.teacher(StructureFlow.Config(teacher=job.out / "ss_flow")).to(job.device)
    data = PreparedObjects(PreparedConfig(root=job.config.root, encoder=job.out / "ss_encoder"), teacher.backbone)
    decoder = load_decoder(job.out / "ss_decoder").to(job.device)
    scales, rows = job.config.guidances, []
    with counting(job.console) as count:
        count(0, 1 + len(scales), "measures")
        reconstruction = quality(load_encoder(job.out / "ss_encoder").to(job.device), decoder, job.data)
        for number, guidance in enumerate(scales, 1):
            count(number, 1 + len(scales), "measures")
            rows.append(structure_condition_test(teacher, decoder, data, guidance=guidance, device=job.device))
    for row in (reconstruction, *rows):
        job.show(row)
    job.write("quality.json", {"steps": 25, "seed": 0, "reconstruction": reconstruction, "rows": rows})


STRUCTURE = {"vae": vae, "decoder": decoder, "flow": flow, "measure": measure}
LATENTS = {
    "targets": slat.targets,
    "slat-vae": slat.vae,
    "slat-mesh": slat.mesh,
    "slat-gs": slat.gaussians,
    "slat-measure-vae": slat.measure_vae,
    "slat-flow": slat.flow,
    "slat-measure": slat.measure_flow,
}
RUNNERS = {**STRUCTURE, **LATENTS}
GROUPS = {"all": tuple(STRUCTURE), "slat": tuple(LATENTS)}
STAGES = (*RUNNERS, *GROUPS)
