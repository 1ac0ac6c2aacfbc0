"""A pipeline on disk or on the hub: its description at once, its models one by one when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep_trellis.checkpoint import read_config
from fewstep_trellis.flow import Flow, load_as
from fewstep_trellis.normalisation import PIPELINE
from fewstep_trellis.pipeline.source import Absent, Source, checkpoint, open_source
from torch import nn

from fewstep.core.interpolant import Interpolant
from fewstep.errors import FewstepError, unknown
from fewstep_trellis2 import models
from fewstep_trellis2.latents import FineShapeStage, ShapeStage, TextureStage
from fewstep_trellis2.pipeline.spec import (
    SHAPE_512,
    SHAPE_1024,
    SHAPE_DECODER,
    STAGE,
    STRUCTURE_DECODER,
    STRUCTURE_FLOW,
    TEXTURE_512,
    TEXTURE_1024,
    TEXTURE_DECODER,
    PipelineSpec,
    read_spec,
)
from fewstep_trellis2.structure import StructureStage
from fewstep_trellis2.vae import FlexiDualGridVaeDecoder, SparseUnetVaeDecoder

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
    SHAPE_DECODER: FlexiDualGridVaeDecoder,
    TEXTURE_DECODER: SparseUnetVaeDecoder,
}


@dataclass(frozen=True)
class Pipeline:
    """What ``pipeline.json`` says, and where it said it."""

    spec: PipelineSpec
    source: Source

    @classmethod
    def open(cls, name: str | Path, key: str = "--teacher") -> Pipeline:
        """Read the description of a folder or of a hub repository; no weights are touched.

        Args:
            name: a folder with ``pipeline.json``, or ``owner/repository``.
            key: what the user called it, for messages.

        Raises:
            FewstepError: neither of the two, the hub cannot be reached, or a description that cannot be used.
        """
        source = open_source(name, key)
        try:
            return cls(read_spec(source.fetch(PIPELINE)), source)
        except Absent:
            raise FewstepError(f"{key}: got {str(name)!r}, a hub repository without {PIPELINE}") from None

    @property
    def name(self) -> str:
        return self.source.name

    def stem(self, role: str, *, weights: bool = True) -> Path:
        """The checkpoint pair of a role on this machine, without suffix; from the hub it is fetched now.

        Args:
            weights: both files; otherwise only the small json file.

        Raises:
            FewstepError: a role that the pipeline lacks, or files that cannot be had.
        """
        if role not in self.spec.models:
            raise unknown(f"model of {self.name}", role, self.spec.models)
        return checkpoint(self.source, self.spec.models[role], weights=weights)

    def arguments(self, role: str) -> dict[str, Any]:
        """The constructor arguments of a model; no weights are fetched for them."""
        stem = self.stem(role, weights=False)
        return read_config(stem.with_name(f"{stem.name}.json"))[1]

    def model(self, role: str) -> nn.Module:
        """The model of a role, for inference, on the CPU.

        Raises:
            FewstepError: as :meth:`stem`, and for a damaged checkpoint or one of another class.
        """
        return load_as(CLASSES[role], self.stem(role), models.MODELS).eval().requires_grad_(False)

    def flow(self, role: str, checkpoint: Path | None = None) -> Flow:
        """The flow of a role as a backbone on the path of its sampler, or another checkpoint in its place."""
        network = self.model(role) if checkpoint is None else load_as(CLASSES[role], checkpoint, models.MODELS)
        flow = FLOWS[role](network.eval().requires_grad_(False))
        flow.interpolant = Interpolant(self.spec.sampler(STAGE[role]).args.sigma_min)
        return flow
