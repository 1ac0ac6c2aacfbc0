"""``pipeline.json`` and ``texturing_pipeline.json`` of TRELLIS.2: which models a pipeline has and how it samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from fewstep_trellis.normalisation import Normalisation
from fewstep_trellis.pipeline.spec import SamplerArgs, checked, read_args
from pydantic import Field, model_validator

from fewstep.config.base import Strict
from fewstep.core.guidance import Guidance

IMAGE, TEXTURING = "Trellis2ImageTo3DPipeline", "Trellis2TexturingPipeline"
STRUCTURE_DECODER, SHAPE_DECODER, TEXTURE_DECODER = "sparse_structure_decoder", "shape_slat_decoder", "tex_slat_decoder"
SHAPE_ENCODER = "shape_slat_encoder"
STRUCTURE_FLOW, SHAPE_512, SHAPE_1024 = (
    "sparse_structure_flow_model",
    "shape_slat_flow_model_512",
    "shape_slat_flow_model_1024",
)
TEXTURE_512, TEXTURE_1024 = "tex_slat_flow_model_512", "tex_slat_flow_model_1024"
ROLES = (
    *(STRUCTURE_FLOW, STRUCTURE_DECODER, SHAPE_512, SHAPE_1024),
    *(SHAPE_DECODER, TEXTURE_512, TEXTURE_1024, TEXTURE_DECODER),
)
STAGE = {
    STRUCTURE_FLOW: "structure",
    SHAPE_512: "shape",
    SHAPE_1024: "shape-1024",
    TEXTURE_512: "texture",
    TEXTURE_1024: "texture",
}
"""The stage of each flow, by role: what its students are for."""

SAMPLERS = {"structure": "sparse_structure_sampler", "shape": "shape_slat_sampler", "texture": "tex_slat_sampler"}
"""The key of each sampler. The fine shape stage has that of the coarse one."""


class Kind(Strict):
    """A way through the stages, by name in ``default_pipeline_type``."""

    structure: int = Field(description="cells on a side of the structure grid")
    shape: tuple[str, ...] = Field(description="roles of the shape flows, in order")
    texture: str = Field(description="role of the texture flow")
    resolution: int = Field(description="cells on a side of the mesh's grid; in a cascade the maximum")

    @property
    def flows(self) -> tuple[str, ...]:
        """Roles of all flows, in order."""
        return (STRUCTURE_FLOW, *self.shape, self.texture)


KINDS = {
    "512": Kind(structure=32, shape=(SHAPE_512,), texture=TEXTURE_512, resolution=512),
    "1024": Kind(structure=64, shape=(SHAPE_1024,), texture=TEXTURE_1024, resolution=1024),
    "1024_cascade": Kind(structure=32, shape=(SHAPE_512, SHAPE_1024), texture=TEXTURE_1024, resolution=1024),
    "1536_cascade": Kind(structure=32, shape=(SHAPE_512, SHAPE_1024), texture=TEXTURE_1024, resolution=1536),
}
FINE = {SHAPE_1024, TEXTURE_1024}  # flows that see the picture at 1024 pixels


def group(stage: str) -> str:
    """The key in ``SAMPLERS`` of a stage's sampler."""
    return stage.partition("-")[0]


class SamplerParams(Strict):
    """What a sampler is called with. The defaults are those of the reference's functions."""

    steps: int = Field(50, ge=1, description="steps")
    rescale_t: float = Field(1.0, gt=0, description="warp of the time grid")
    guidance_strength: float = Field(3.0, description="scale g in g c + (1 - g) u")
    guidance_rescale: float = Field(0.0, ge=0, le=1, description="share of guidance's effect on the spread undone")
    guidance_interval: tuple[float, float] = Field((0.0, 1.0), description="times with guidance, both ends included")
    verbose: bool = Field(True, description="the reference's progress bar; not used here")


class SamplerSpec(Strict):
    """One of the reference's samplers by class name, all of them Euler steps."""

    name: Literal["FlowEulerSampler", "FlowEulerCfgSampler", "FlowEulerGuidanceIntervalSampler"] = Field(
        description="class of the sampler"
    )
    args: SamplerArgs = Field(description="arguments of its constructor")
    params: SamplerParams = Field(description="arguments of a call")

    @property
    def guidance(self) -> Guidance:
        """The guidance in the core's convention, which is TRELLIS.2's too: scale 1 is none."""
        params = self.params
        if self.name == "FlowEulerSampler":
            return Guidance()
        interval = params.guidance_interval if self.name == "FlowEulerGuidanceIntervalSampler" else (0.0, 1.0)
        return Guidance(params.guidance_strength, interval, params.guidance_rescale)


class Named(Strict):
    """A class of the reference's by name, with the arguments of its constructor."""

    name: str = Field(description="class")
    args: dict[str, Any] = Field(default_factory=dict, description="arguments of its constructor")


class Spec(Strict):
    """What the ``args`` of both files have in common."""

    title: ClassVar[str]  # the class of the pipeline
    roles: ClassVar[tuple[str, ...]]  # of the models that it needs
    kind: ClassVar[str] = "image"

    models: dict[str, str] = Field(description="checkpoint of each role: a path in the repository, or owner/repo/path")
    tex_slat_sampler: SamplerSpec = Field(description="how texture latents are sampled")
    shape_slat_normalization: Normalisation = Field(description="between shape latents of flow and decoder")
    tex_slat_normalization: Normalisation = Field(description="between texture latents of flow and decoder")
    image_cond_model: Named = Field(description="image encoder")
    rembg_model: Named | None = Field(None, description="the reference's matting network; not used here")
    low_vram: bool = Field(True, description="the reference's way to save memory; here --low-memory")

    @model_validator(mode="after")
    def _complete(self) -> Spec:
        if absent := [role for role in self.roles if role not in self.models]:
            raise ValueError(f"models: {', '.join(absent)} missing; there are {', '.join(sorted(self.models))}")
        return self

    def sampler(self, stage: str) -> SamplerSpec:
        """The sampler of a stage of ``STAGE``."""
        found: SamplerSpec = getattr(self, SAMPLERS[group(stage)])
        return found

    @property
    def encoder(self) -> str:
        """Name of the image encoder."""
        return str(self.image_cond_model.args.get("model_name", self.image_cond_model.name))


class PipelineSpec(Spec):
    """The ``args`` of ``pipeline.json``."""

    title, roles = IMAGE, ROLES

    sparse_structure_sampler: SamplerSpec = Field(description="how structures are sampled")
    shape_slat_sampler: SamplerSpec = Field(description="how shape latents are sampled")
    default_pipeline_type: Literal["512", "1024", "1024_cascade", "1536_cascade"] = Field(
        "1024_cascade", description="which flows are run, and how fine the mesh is"
    )


class TexturingSpec(Spec):
    """The ``args`` of ``texturing_pipeline.json``."""

    title, roles = TEXTURING, (SHAPE_ENCODER, TEXTURE_512, TEXTURE_1024, TEXTURE_DECODER)


S = TypeVar("S", bound=Spec)


def read_spec(file: Path, wanted: type[S]) -> S:
    """Read a description. Keys that the reference does not know either are named in a warning.

    Raises:
        FewstepError: not JSON, a foreign pipeline class, or values that cannot be used, each named with its key.
    """
    return checked(file, wanted, read_args(file, [wanted.title], wanted, "TRELLIS.2")[1])
