"""``fewstep teach``: for each stage a VAE, then the flow teacher by the same engine that distils, then its measure."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from fewstep.config.base import merge, parse_override, validate
from fewstep.engine.device import pick_device
from fewstep.errors import FewstepError, unknown
from fewstep_trellis.backbone import StructureFlow, load_decoder
from fewstep_trellis.dataset import PreparedConfig, PreparedObjects, load_encoder
from fewstep_trellis.teach import slat_command as slat
from fewstep_trellis.teach.condition import structure_condition_test
from fewstep_trellis.teach.config import OWN, Job, TeachConfig
from fewstep_trellis.teach.flows import train_flow, write_structure_initial
from fewstep_trellis.teach.vae import teach_vae


def teach(stage: str, out: Path, overrides: list[str], *, device: str = "auto", resume: bool, console: Console) -> None:
    """Run one stage, all of the structure's ("all") or of the structured latents' ("slat") into ``out``.

    The first make ``ss_encoder``, ``ss_decoder``, ``ss_flow`` and ``quality.json``; the second ``slat_encoder``,
    ``slat_decoder_mesh``, ``slat_decoder_gs``, ``slat_flow``, ``pipeline.json`` and ``slat_*quality.json``.

    Raises:
        FewstepError: for an unknown stage, key or device, or a folder that exists without ``resume``.
    """
    if stage not in STAGES:
        raise unknown("stage", stage, STAGES)
    mine = [text for text in overrides if text.partition("=")[0].strip().partition(".")[0] in OWN]
    config = validate(TeachConfig, merge(*(parse_override(text) for text in mine)))
    rest = [text for text in overrides if text not in mine]
    job = Job(config, out, rest, pick_device(device, "--device"), resume, console)
    for name in GROUPS.get(stage, (stage,)):
        RUNNERS[name](job)


def vae(job: Job) -> None:
    """Train the structure VAE; save both halves in half precision, and how well they reconstruct."""
    out, recipe = job.out, job.config.vae
    if (out / "ss_decoder.safetensors").exists():
        if not job.resume:
            raise FewstepError(f"--out: {str(out)!r} holds a VAE already; accepted: another folder, or --resume")
        job.console.print("VAE: done before")
        return

    def log(row: dict[str, float]) -> None:
        if row["step"] % 20 == 0:
            shown = "  ".join(f"{key} {row[key]:.4f}" for key in ("bce", "dice", "kl"))
            job.console.print(f"VAE {row['step'] + 1:.0f}/{recipe.steps}  {shown}  {row['seconds']:.0f} s")

    figures = teach_vae(recipe, job.data, out, job.device, log)
    job.write("vae_quality.json", {**figures, "recipe": recipe.model_dump(mode="json")})
    test, train = figures["test_iou"], figures["train_iou"]
    job.console.print(f"VAE: reconstruction IoU {test:.3f} held out, {train:.3f} trained on")


def flow(job: Job) -> None:
    """Train the structure flow on the encoder's latents."""
    data, encoder = job.data, load_encoder(job.out / "ss_encoder")
    latent = encoder.encode(data.occupancy(data.train[:1]))[0]
    shape = {"resolution": latent.shape[-1], "channels": latent.shape[1], "cond_channels": data.channels}
    if not (job.out / "initial.safetensors").exists():
        write_structure_initial(job.config.flow, job.out / "initial", **shape)
    names = {"initial": "initial", "encoder": "ss_encoder", "decoder": "ss_decoder"}
    train_flow(job, "trellis", **names, run="flow", name="ss_flow")


def measure(job: Job) -> None:
    """The condition test at each guidance scale, into ``quality.json``."""
    teacher = StructureFlow.teacher(StructureFlow.Config(teacher=job.out / "ss_flow")).to(job.device)
    data = PreparedObjects(PreparedConfig(root=job.config.root, encoder=job.out / "ss_encoder"), teacher.backbone)
    decoder = load_decoder(job.out / "ss_decoder").to(job.device)
    rows = []
    for guidance in job.config.guidances:
        rows.append(structure_condition_test(teacher, decoder, data, guidance=guidance, device=job.device))
        job.show(rows[-1])
    job.write("quality.json", {"steps": 25, "seed": 0, "rows": rows})


STRUCTURE = {"vae": vae, "flow": flow, "measure": measure}
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
