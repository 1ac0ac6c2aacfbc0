"""``pipeline.json``: which models a TRELLIS pipeline is made of and how it samples. Every value comes from the file."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, model_validator

from fewstep.config.base import Strict, validate
from fewstep.core.guidance import Guidance
from fewstep.errors import FewstepError, unknown
from fewstep.texts import read_json
from fewstep_trellis.normalisation import PIPELINE, Normalisation

STAGES = {"ss": "sparse_structure_flow_model", "slat": "slat_flow_model"}  # stage: role of its flow
STRUCTURE_DECODER = "sparse_structure_decoder"
MESH, GAUSSIANS, RADIANCE = "slat_decoder_mesh", "slat_decoder_gs", "slat_decoder_rf"
REQUIRED = (*STAGES.values(), STRUCTURE_DECODER)
NAMES = {"TrellisImageTo3DPipeline": "image", "TrellisTextTo3DPipeline": "text"}
BACKBONES = dict.fromkeys(NAMES, "trellis") | {"Trellis2ImageTo3DPipeline": "trellis2"}  # by pipeline class
S = TypeVar("S", bound=Strict)
# Parameters by sampler; each guides only as far as it takes the parameters for it.
_PLAIN = {"steps", "rescale_t", "verbose"}
TAKES = {
    "FlowEulerSampler": _PLAIN,
    "FlowEulerCfgSampler": _PLAIN | {"cfg_strength"},
    "FlowEulerGuidanceIntervalSampler": _PLAIN | {"cfg_strength", "cfg_interval"},
}


class SamplerArgs(Strict):
    """Constructor arguments of a sampler."""

    sigma_min: float = Field(ge=0, description="noise left at t = 0")


class SamplerParams(Strict):
    """What a sampler is called with. The defaults are those of the reference's functions."""

    steps: int = Field(50, ge=1, description="steps")
    rescale_t: float = Field(1.0, gt=0, description="warp of the time grid")
    cfg_strength: float = Field(3.0, description="guidance strength w in (1 + w) c - w u")
    cfg_interval: tuple[float, float] = Field((0.0, 1.0), description="times with guidance, both ends included")
    verbose: bool = Field(True, description="the reference's progress bar; not used here")


class SamplerSpec(Strict):
    """One of the reference's samplers by class name, all of them Euler steps."""

    name: Literal["FlowEulerSampler", "FlowEulerCfgSampler", "FlowEulerGuidanceIntervalSampler"] = Field(
        description="class of the sampler"
    )
    args: SamplerArgs = Field(description="arguments of its constructor")
    params: SamplerParams = Field(description="arguments of a call")

    @model_validator(mode="after")
    def _known(self) -> SamplerSpec:
        if idle := sorted(self.params.model_fields_set - TAKES[self.name]):
            takes = ", ".join(sorted(TAKES[self.name]))
            raise ValueError(f"{self.name} does not take {', '.join(idle)}; accepted: {takes}")
        return self

    @property
    def guidance(self) -> Guidance:
        """The guidance in this library's convention (scale 1 + w)."""
        if self.name == "FlowEulerSampler":
            return Guidance()
        return Guidance.strength(self.params.cfg_strength, self.params.cfg_interval)


class PipelineSpec(Strict):
    """The ``args`` of ``pipeline.json``."""

    models: dict[str, str] = Field(description="checkpoint of each role: a path in the repository, or owner/repo/path")
    sparse_structure_sampler: SamplerSpec = Field(description="how structures are sampled")
    slat_sampler: SamplerSpec = Field(description="how structured latents are sampled")
    slat_normalization: Normalisation = Field(description="between the latents of the flow and of the decoders")
    image_cond_model: str | None = Field(None, description="image encoder of an image pipeline")
    text_cond_model: str | None = Field(None, description="text encoder of a text pipeline")

    @model_validator(mode="after")
    def _complete(self) -> PipelineSpec:
        if absent := [role for role in REQUIRED if role not in self.models]:
            raise ValueError(f"models: {', '.join(absent)} missing; there are {', '.join(sorted(self.models))}")
        if (self.image_cond_model is None) == (self.text_cond_model is None):
            raise ValueError("exactly one of image_cond_model and text_cond_model is needed")
        return self

    def sampler(self, stage: str) -> SamplerSpec:
        """The sampler of stage "ss" or "slat"."""
        return self.sparse_structure_sampler if stage == "ss" else self.slat_sampler

    @property
    def kind(self) -> str:
        """What the pipeline is conditioned on: "image" or "text"."""
        return "image" if self.text_cond_model is None else "text"

    @property
    def encoder(self) -> str:
        """Name of the model that encodes the condition."""
        return str(self.image_cond_model or self.text_cond_model)


def read_spec(file: Path) -> PipelineSpec:
    """Read ``pipeline.json``.

    Raises:
        FewstepError: as ``read_args``, or values that cannot be used, each named with its key.
    """
    name, args = read_args(file, NAMES, PipelineSpec, "TRELLIS")
    spec = checked(file, PipelineSpec, args)
    if spec.kind != NAMES[name]:
        raise FewstepError(
            f"{file}: a pipeline for {NAMES[name]}s needs args.{NAMES[name]}_cond_model, got {spec.kind}_cond_model"
        )
    return spec


def read_args(file: Path, names: Iterable[str], spec: type[Strict], project: str) -> tuple[str, dict[str, Any]]:
    """The class that a description names, and its ``args`` as far as ``spec`` has them; a warning names the others.

    Args:
        names: classes of pipelines that are accepted.
        spec: what is read.
        project: who writes such files, for messages.

    Raises:
        FewstepError: no JSON, or a foreign pipeline class.
    """
    try:
        values = read_json(file)
        name, args = values["name"], dict(values["args"])
    except (FewstepError, ValueError, KeyError, TypeError) as error:
        wanted = f'accepted: JSON with "name" and "args", as {project} writes it'
        raise FewstepError(f"{file}: no pipeline description ({type(error).__name__}: {error}); {wanted}") from None
    names = list(names)
    if name not in names:
        use = f"; for such a pipeline: --backbone {BACKBONES[name]}" if name in BACKBONES else ""
        raise FewstepError(f"{file}: {unknown('name', name, names)}{use}")
    for key in sorted(args.keys() - spec.model_fields.keys()):
        warnings.warn(f"{file}: args.{key} is not used", stacklevel=2)
    return name, {key: args[key] for key in spec.model_fields if key in args}


def checked(file: Path, spec: type[S], args: Mapping[str, Any]) -> S:
    """The ``args`` of a description as values. Raises FewstepError with the file and each key."""
    try:
        return validate(spec, args)
    except FewstepError as error:
        raise FewstepError(f"{file}, args: {error}") from None


__all__ = ["PIPELINE", "PipelineSpec", "SamplerSpec", "read_spec"]
