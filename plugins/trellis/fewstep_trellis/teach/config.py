"""Keys of ``fewstep teach``, and what one call of it hands to every stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from fewstep_shapes3d.data import SWEETHOME3D
from fewstep_shapes3d.data.joined import Folders, load_sets
from fewstep_shapes3d.data.prepared import PreparedSet
from pydantic import Field

from fewstep.config.base import Strict
from fewstep.console import Console
from fewstep.errors import FewstepError
from fewstep.files import write_json
from fewstep_trellis.teach.decoder import DecoderConfig
from fewstep_trellis.teach.flows import SlatFlowConfig, StructureFlowConfig
from fewstep_trellis.teach.slat_gs import GaussianConfig
from fewstep_trellis.teach.slat_vae import MeshConfig, SlatVaeConfig
from fewstep_trellis.teach.vae import VaeConfig


class TeachConfig(Strict):
    """Keys of ``fewstep teach`` itself. ``seed``, ``train.*``, ``objective.*``, ``backbone.*`` and ``data.*`` are the
    engine's, which trains the flows, as in ``distill``."""

    root: Folders = Field((SWEETHOME3D,), description="prepared sets, joined by commas")
    vae: VaeConfig = Field(default_factory=VaeConfig, description="recipe of the structure VAE")
    decoder: DecoderConfig = Field(default_factory=DecoderConfig, description="further training of its decoder")
    flow: StructureFlowConfig = Field(default_factory=StructureFlowConfig, description="size of the structure flow")
    guidances: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (1.0, 2.0, 3.0, 5.0), min_length=1, description="guidance scales that are measured"
    )
    source: Path | None = Field(
        None, description="catalogues or meshes that the prepared set was made of (targets only)"
    )
    targets: Path | None = Field(None, description="folder of the SLat decoders' targets; none: in the user's cache")
    workers: int = Field(2, gt=0, description="processes that make targets")
    slat_vae: SlatVaeConfig = Field(default_factory=SlatVaeConfig, description="recipe of the structured-latent VAE")
    slat_mesh: MeshConfig = Field(default_factory=MeshConfig, description="further training of its mesh decoder")
    slat_gs: GaussianConfig = Field(default_factory=GaussianConfig, description="recipe of its Gaussian decoder")
    slat_flow: SlatFlowConfig = Field(default_factory=SlatFlowConfig, description="size of the structured-latent flow")
    measure_objects: int = Field(32, gt=0, description="held-out objects of the second stage's measures")


# By stage: what it writes last, and what an unfinished one leaves.
FILES = {
    "vae": ("ss_vae_decoder.safetensors", "vae.state"),
    "decoder": ("ss_decoder.safetensors", "decoder.state"),
    "flow": ("ss_flow.safetensors", "flow"),
    "slat-vae": ("pipeline.json", "slat_vae.state"),
    "slat-mesh": ("slat_decoder_mesh.json", "slat_mesh.state"),
    "slat-gs": ("slat_decoder_gs.json", "slat_gs.state"),
    "slat-flow": ("slat_flow.safetensors", "slat-flow"),
}
NEEDS = {  # by stage: the stage whose models it works on
    "decoder": "vae",
    "flow": "decoder",
    "measure": "flow",
    "slat-mesh": "slat-vae",
    "slat-gs": "slat-vae",
    "slat-measure-vae": "slat-gs",
    "slat-flow": "slat-vae",
    "slat-measure": "slat-flow",
}


@dataclass(frozen=True)
class Job:
    """One call of ``fewstep teach``.

    Args:
        engine: nested keys for the engine, which trains the flows.
        device: where every stage computes. Random numbers are drawn on the CPU, so they do not depend on it.
    """

    config: TeachConfig
    out: Path
    engine: dict[str, Any]
    device: torch.device
    resume: bool
    console: Console

    @cached_property
    def data(self) -> PreparedSet:
        """The prepared set."""
        return load_sets(self.config.root, key="root")

    def check_files(self, stage: str, others: Sequence[str]) -> None:
        """Check the files of a stage before the first of ``others`` starts.

        Raises:
            FewstepError: the stage has left something and ``resume`` was not asked for, or what it works on is neither
                there nor made by one of the ``others``.
        """
        there = [self.out / name for name in FILES.get(stage, ()) if (self.out / name).exists()]
        if there and not self.resume:
            raise FewstepError(f"--out: {str(there[0])!r} is there already; accepted: another folder, or --resume")

        needed = NEEDS.get(stage)
        if needed and needed not in others and not (last := self.out / FILES[needed][0]).exists():
            raise FewstepError(f"--stage {stage}: there is no {last}; accepted: --stage {needed} first, which makes it")

    def finished(self, stage: str) -> bool:
        """Whether the file that the stage writes last is there; if so, a line says it."""
        last = self.out / FILES[stage][0]
        if last.exists():
            self.console.print(f"{stage}: done before ({last})", soft_wrap=True)
        return last.exists()

    def write(self, name: str, value: dict[str, Any]) -> None:
        """Write a JSON file into the output folder."""
        write_json(self.out / name, value)

    def show(self, row: dict[str, float]) -> None:
        """Print figures in one line."""
        self.console.print("  ".join(f"{key} {value:.3f}" for key, value in row.items()))
