"""A pipeline on disk or on the hub: the description is read at once, each model when it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from torch import nn

from fewstep.core.interpolant import Interpolant
from fewstep.errors import FewstepError, unknown
from fewstep_trellis import models
from fewstep_trellis.backbone import StructureFlow
from fewstep_trellis.checkpoint import read_config
from fewstep_trellis.flow import Flow, load_as
from fewstep_trellis.pipeline.source import Absent, Folder, Source, checkpoint, open_source, places
from fewstep_trellis.pipeline.spec import (
    GAUSSIANS,
    MESH,
    PIPELINE,
    RADIANCE,
    STAGES,
    STRUCTURE_DECODER,
    PipelineSpec,
    read_spec,
)
from fewstep_trellis.slat import StructuredLatentFlow
from fewstep_trellis.weightfiles import check_complete, tensor_file

FLOWS: dict[str, type[Flow]] = {"ss": StructureFlow, "slat": StructuredLatentFlow}
CLASSES: dict[str, type[nn.Module]] = {
    STAGES["ss"]: models.SparseStructureFlowModel,
    STAGES["slat"]: models.SLatFlowModel,
    STRUCTURE_DECODER: models.SparseStructureDecoder,
    MESH: models.SLatMeshDecoder,
    GAUSSIANS: models.SLatGaussianDecoder,
    RADIANCE: models.SLatRadianceFieldDecoder,
}


class Spec(Protocol):
    """A description: its models by role."""

    @property
    def models(self) -> Mapping[str, str]: ...


S = TypeVar("S", bound=Spec)
P = TypeVar("P", bound="Described[Any]")


@dataclass(frozen=True)
class Described(Generic[S]):
    """A pipeline's description and where it came from. A subclass defines how it is read, and each role's class."""

    spec: S
    source: Source
    classes: ClassVar[Mapping[str, type[nn.Module]]]
    table: ClassVar[Mapping[str, type[models.Rebuildable]]] = models.MODELS
    file: ClassVar[str] = PIPELINE
    example: ClassVar[str] = "microsoft/TRELLIS-image-large"  # a name of the hub, for messages

    @staticmethod
    def read(path: Path) -> Any:
        """The description in a file; raises FewstepError."""
        raise NotImplementedError

    @classmethod
    def open(cls: type[P], name: str | Path, key: str = "--teacher") -> P:
        """Read the description of a folder or of a hub repository; no weights are touched.

        Args:
            name: a folder with ``file``, or ``owner/repository``.
            key: what the user called it, for messages.

        Raises:
            FewstepError: neither of the two, the hub cannot be reached, or a description that cannot be used.
        """
        source = open_source(name, key, cls.file, cls.example)
        try:
            return cls(cls.read(source.fetch(cls.file)), source)
        except Absent:
            raise FewstepError(f"{key}: got {str(name)!r}, a hub repository without {cls.file}") from None

    @property
    def name(self) -> str:
        return self.source.name

    def stem(self, role: str, *, weights: bool = True) -> Path:
        """The checkpoint pair of a role on this machine, without suffix; fetched now if it is on the hub.

        Args:
            weights: both files; otherwise only the small json file.

        Raises:
            FewstepError: a role that the pipeline lacks, or files that cannot be had.
        """
        if role not in self.spec.models:
            raise unknown(f"model of {self.name}", role, self.spec.models)
        return checkpoint(self.source, self.spec.models[role], weights=weights)

    def check(self, roles: Iterable[str]) -> None:
        """Look whether the checkpoints of these roles are there and whole, without reading weights. What may be on the
        hub is not fetched for it.

        Raises:
            FewstepError: as :meth:`model`, for a file that is missing or cut short.
        """
        for role in roles:
            if all(isinstance(place, Folder) for place, _ in places(self.source, self.spec.models[role])):
                check_complete(tensor_file(self.stem(role)))

    def model(self, role: str) -> nn.Module:
        """The model of a role, for inference, on the CPU.

        Raises:
            FewstepError: as :meth:`stem`, and for a damaged checkpoint or one of another class.
        """
        return load_as(self.classes[role], self.stem(role), self.table).eval().requires_grad_(False)


class Pipeline(Described[PipelineSpec]):
    """A pipeline of TRELLIS."""

    classes = CLASSES

    @staticmethod
    def read(path: Path) -> PipelineSpec:
        return read_spec(path)

    def flow(self, stage: str) -> Flow:
        """The flow of stage "ss" or "slat" as a backbone on the path of its sampler."""
        return self.as_flow(stage, self.model(STAGES[stage]))

    def as_flow(self, stage: str, network: Any) -> Flow:
        """A network in the place of the stage's flow."""
        flow = FLOWS[stage](network)
        flow.interpolant = Interpolant(self.spec.sampler(stage).args.sigma_min)
        return flow

    @cached_property
    def arguments(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Class and constructor arguments of each stage's flow, by stage; no weights are fetched for them."""
        stems = {stage: self.stem(role, weights=False) for stage, role in STAGES.items()}
        return {stage: read_config(stem.with_name(f"{stem.name}.json")) for stage, stem in stems.items()}
