"""A pipeline on disk or on the hub: the description is read at once, each model when it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from fewstep_trellis.checkpoint import read_config
from fewstep_trellis.flow import Flow, load_as
from fewstep_trellis.pipeline.loading import Described
from torch import nn

from fewstep.core.interpolant import Interpolant
from fewstep_trellis2 import models
from fewstep_trellis2.flow import RELEASED
from fewstep_trellis2.latents import FineShapeStage, ShapeStage, TextureStage
from fewstep_trellis2.pipeline.spec import (
    SHAPE_512,
    SHAPE_1024,
    SHAPE_DECODER,
    SHAPE_ENCODER,
    STAGE,
    STRUCTURE_DECODER,
    STRUCTURE_FLOW,
    TEXTURE_512,
    TEXTURE_1024,
    TEXTURE_DECODER,
    PipelineSpec,
    Spec,
    TexturingSpec,
    read_spec,
)
from fewstep_trellis2.structure import StructureStage
from fewstep_trellis2.vae import FlexiDualGridVaeDecoder, FlexiDualGridVaeEncoder, SparseUnetVaeDecoder

FLOWS: dict[str, type[Flow]] = {
    STRUCTURE_FLOW: StructureStage,
    SHAPE_512: ShapeStage,
    SHAPE_1024: FineShapeStage,
    TEXTURE_512: TextureStage,
    TEXTURE_1024: TextureStage,
}
CLASSES: dict[str, type[nn.Module]] = {
    **{role: flow.network for role, flow in FLOWS.items()},
    STRUCTURE_DECODER: models.MODELS["SparseStructureDecoder"],
    SHAPE_ENCODER: FlexiDualGridVaeEncoder,
    SHAPE_DECODER: FlexiDualGridVaeDecoder,
    TEXTURE_DECODER: SparseUnetVaeDecoder,
}

S = TypeVar("S", bound=Spec)


class Network(Described[S]):
    """What both pipelines of TRELLIS.2 have in common."""

    classes = CLASSES
    table = models.MODELS
    example = RELEASED

    def arguments(self, role: str) -> dict[str, Any]:
        """The constructor arguments of a model; no weights are fetched for them."""
        stem = self.stem(role, weights=False)
        return read_config(stem.with_name(f"{stem.name}.json"))[1]

    def flow(self, role: str, checkpoint: Path | None = None) -> Flow:
        """The flow of a role as a backbone on the path of its sampler, or another checkpoint in its place."""
        network = self.model(role) if checkpoint is None else load_as(CLASSES[role], checkpoint, models.MODELS)
        flow = FLOWS[role](network.eval().requires_grad_(False))
        flow.interpolant = Interpolant(self.spec.sampler(STAGE[role]).args.sigma_min)
        return flow


class Pipeline(Network[PipelineSpec]):
    """From a picture to an object."""

    @staticmethod
    def read(path: Path) -> PipelineSpec:
        return read_spec(path, PipelineSpec)


class TexturingPipeline(Network[TexturingSpec]):
    """From a mesh and a picture to the mesh's texture."""

    file = "texturing_pipeline.json"

    @staticmethod
    def read(path: Path) -> TexturingSpec:
        return read_spec(path, TexturingSpec)


AnyPipeline = Pipeline | TexturingPipeline
