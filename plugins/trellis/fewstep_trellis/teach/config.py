"""Keys of ``fewstep teach``."""

from __future__ import annotations

from pathlib import Path

from fewstep_shapes3d.data import SWEETHOME3D
from pydantic import Field

from fewstep.config.base import Strict
from fewstep_trellis.teach.flows import SlatFlowConfig, StructureFlowConfig
from fewstep_trellis.teach.slat_gs import GaussianConfig
from fewstep_trellis.teach.slat_vae import MeshConfig, SlatVaeConfig
from fewstep_trellis.teach.vae import VaeConfig


class TeachConfig(Strict):
    """Keys of ``fewstep teach``; ``train.*``, ``objective.*`` and ``data.*`` go to the engine as in ``distill``."""

    root: Path = Field(SWEETHOME3D, description="prepared set")
    vae: VaeConfig = Field(default_factory=VaeConfig, description="recipe of the structure VAE")
    flow: StructureFlowConfig = Field(default_factory=StructureFlowConfig, description="size of the structure flow")
    guidances: tuple[float, ...] = Field((1.0, 2.0, 3.0, 5.0), description="guidance scales that are measured")
    source: Path | None = Field(None, description="catalogues that the prepared set was made of (targets only)")
    targets: Path | None = Field(None, description="folder of the SLat decoders' targets; none: in the user's cache")
    workers: int = Field(2, gt=0, description="processes that make targets")
    slat_vae: SlatVaeConfig = Field(default_factory=SlatVaeConfig, description="recipe of the structured-latent VAE")
    slat_mesh: MeshConfig = Field(default_factory=MeshConfig, description="further training of its mesh decoder")
    slat_gs: GaussianConfig = Field(default_factory=GaussianConfig, description="recipe of its Gaussian decoder")
    slat_flow: SlatFlowConfig = Field(default_factory=SlatFlowConfig, description="size of the structured-latent flow")
    measure_objects: int = Field(32, gt=0, description="held-out objects of the second stage's measures")


OWN = tuple(TeachConfig.model_fields)
