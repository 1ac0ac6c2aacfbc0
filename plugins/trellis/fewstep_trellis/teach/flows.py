"""The flows of both stages: their random start, and their training by the engine that distils."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field, model_validator

from fewstep.api.distillation import run_resolved
from fewstep.config.base import Strict
from fewstep.config.resolve import resolve_stages
from fewstep.config.run import Resolved
from fewstep.console import command, say
from fewstep.engine.device import emulates_bf16
from fewstep.errors import invalid
from fewstep_trellis.checkpoint import load_model, save_model
from fewstep_trellis.flow import load_as
from fewstep_trellis.models import SLatFlowModel, SparseStructureFlowModel
from fewstep_trellis.models.arguments import Rebuildable
from fewstep_trellis.shipped import existing

if TYPE_CHECKING:
    from fewstep_trellis.teach.config import Job


class TransformerConfig(Strict):
    """Keys that both flows have."""

    width: int = Field(128, gt=0, description="channels of the transformer")
    blocks: int = Field(6, gt=0, description="transformer blocks")
    heads: int = Field(4, gt=0, description="attention heads")
    mlp_ratio: float = Field(4, gt=0, description="width of the feed-forward networks over the transformer's")
    seed: int = Field(0, ge=0, description="seed of the weights")
    start: Path | None = Field(
        None, description="checkpoint to start from, whose sizes replace those above; none: random weights"
    )

    @model_validator(mode="after")
    def _whole_heads(self) -> TransformerConfig:
        if self.width % (2 * self.heads):
            raise ValueError(f"a width that is a multiple of twice the heads, got {self.width} and {self.heads} heads")
        return self


def start_from(
    kind: type[Rebuildable],
    config: TransformerConfig,
    path: Path,
    *,
    resolution: int,
    channels: int,
    cond_channels: int,
) -> bool:
    """Copy the checkpoint ``config.start`` to ``path``; False if none is given.

    Raises:
        FewstepError: it cannot be read, or is of another class or shape.
    """
    if config.start is None:
        return False
    model = load_as(kind, existing("start", config.start))
    wanted = {"resolution": resolution, "in_channels": channels, "cond_channels": cond_channels}
    found = {name: model.args.get(name) for name in wanted}
    if found != wanted:
        raise invalid("start", f"{config.start}, with {found}", f"a flow with {wanted}")
    save_model(model, path)
    return True


class StructureFlowConfig(TransformerConfig):
    """Size of the structure flow; TRELLIS-image-large is width 1024, 24 blocks, 16 heads, patch 1, cond 1024."""

    patch: int = Field(2, gt=0, description="edge of the cube of latents that makes a token")
    share_mod: bool = Field(True, description="one modulation network for all blocks (saves a third of the weights)")


def write_structure_initial(
    config: StructureFlowConfig, path: Path, *, resolution: int, channels: int, cond_channels: int
) -> None:
    """Write a randomly initialised flow for latents [channels, resolution^3] and tokens of ``cond_channels``."""
    torch.manual_seed(config.seed)
    model = SparseStructureFlowModel(
        resolution=resolution,
        in_channels=channels,
        out_channels=channels,
        model_channels=config.width,
        cond_channels=cond_channels,
        num_blocks=config.blocks,
        num_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        patch_size=config.patch,
        share_mod=config.share_mod,
        pe_mode="ape",
        qk_rms_norm=True,
    )
    save_model(model, path)


class SlatFlowConfig(TransformerConfig):
    """Size of the flow; TRELLIS-image-large is width 1024, 24 blocks, 16 heads, patch 2, two io blocks of 128."""

    width: int = Field(96, gt=0, description="channels of the transformer")
    blocks: int = Field(4, gt=0, description="transformer blocks")
    mlp_ratio: float = Field(3, gt=0, description="width of the feed-forward networks over the transformer's")
    io_width: int = Field(16, gt=0, description="channels at full resolution, before and after the transformer")


def write_slat_initial(
    config: SlatFlowConfig, path: Path, *, resolution: int, channels: int, cond_channels: int
) -> None:
    """Write a randomly initialised flow for latents of ``channels`` and tokens of ``cond_channels``.

    Two blocks a level, as official: with one, nothing at full resolution would reach the output, and the noise of a
    single voxel could not be told from its neighbours'.
    """
    torch.manual_seed(config.seed)
    model = SLatFlowModel(
        resolution=resolution,
        in_channels=channels,
        out_channels=channels,
        model_channels=config.width,
        cond_channels=cond_channels,
        num_blocks=config.blocks,
        num_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        patch_size=2,
        num_io_res_blocks=2,
        io_block_channels=[config.io_width],
        pe_mode="ape",
        qk_rms_norm=True,
    )
    save_model(model, path)


@dataclass(frozen=True)
class FlowRun:
    """The run of the engine that trains a flow.

    Args:
        backbone: registered name.
        initial, encoder, decoder: checkpoints in the folder of ``fewstep teach``.
        run: folder of the run there.
        name: the trained flow's checkpoint there.
    """

    backbone: str
    initial: str
    encoder: str
    decoder: str
    run: str
    name: str

    def resolve(self, out: Path, root: Sequence[Path], device: torch.device, keys: Mapping[str, Any]) -> Resolved:
        """The run's config; ``keys`` win, and the preset's bf16 gives way to fp32 where a CPU would emulate it.

        Raises:
            FewstepError: for values out of bounds.
        """
        tables = {
            "backbone": {"teacher": out / self.initial, "decoder": out / self.decoder},
            "data": {"encoder": out / self.encoder, "root": root},
            "train": {"device": str(device)} | ({"precision": "fp32"} if emulates_bf16(device) else {}),
        }
        (found,) = resolve_stages(METHOD, self.backbone, layers=[tables, keys]).values()
        return found

    def distillation(self, job: Job) -> str:
        """The command that distils the trained flow, for the user to copy."""
        root = ",".join(map(str, job.config.root))
        places = {"data.encoder": self.encoder, "backbone.teacher": self.name, "backbone.decoder": self.decoder}
        keys = [f"data.root={root}", *(f"{key}={job.out / name}" for key, name in places.items())]
        return command("fewstep", "distill", "--method", "NAME", "--backbone", self.backbone, *keys)


METHOD = "flow-matching"
STRUCTURE_FLOW = FlowRun("trellis", "initial", "ss_encoder", "ss_decoder", run="flow", name="ss_flow")
SLAT_FLOW = FlowRun(
    "trellis-slat", "slat_initial", "slat_encoder", "slat_decoder_mesh", run="slat-flow", name="slat_flow"
)


def train_flow(job: Job, flow: FlowRun) -> None:
    """Train a flow by flow matching and save its moving average in half precision."""
    folder = job.out / flow.run
    resolved = flow.resolve(job.out, job.config.root, job.device, job.engine)
    found = run_resolved({"": resolved}, folder, job.resume and folder.exists(), job.console)
    save_model(load_model(found.folder / "student" / "model"), job.out / flow.name, dtype=torch.float16)
    say(job.console, f"teacher: {job.out / flow.name}.safetensors\nto distil it: {flow.distillation(job)}")
