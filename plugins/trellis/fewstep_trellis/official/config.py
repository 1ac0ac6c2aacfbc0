"""Configs of the data sets in TRELLIS's own layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from fewstep.config.base import Strict
from fewstep.core.dataset import PackedDataConfig
from fewstep_trellis.normalisation import Normalisation
from fewstep_trellis.official.condition import CAPTIONS
from fewstep_trellis.official.selection import Filter, at_least, at_most, filled, has

IMAGE_ENCODER, TEXT_ENCODER = "dinov2_vitl14_reg", "openai/clip-vit-large-patch14"


class ObjectsConfig(Strict):
    """Which objects, how their pictures are encoded, and what happens to those that cannot be read."""

    roots: tuple[Path, ...] = Field(
        (), description="data roots, each with a metadata.csv, joined by commas; an object in several is used once"
    )
    min_aesthetic: float = Field(4.5, description="least aesthetic_score of an object (TRELLIS's configs: 4.5)")
    image_size: int = Field(518, ge=14, description="side of a condition picture as the encoder gets it, in pixels")
    encoder: str | None = Field(
        None,
        description=f"encoder of the condition: a name or a folder of weights; none: {IMAGE_ENCODER}, or for text "
        f"{TEXT_ENCODER}",
    )
    token_cache: Path | None = Field(
        None, description="folder where picture tokens are kept in half precision; none: encoded at each step"
    )
    max_failures: int | None = Field(
        None,
        ge=0,
        description="unusable objects that are replaced by others; one more is an error; none: half of all objects, "
        "but at least 20",
    )
    workers: int = Field(4, ge=1, le=256, description="threads that read the files of a batch")
    order: Literal["stream", "published"] = Field(
        "stream",
        description="stream: every object once in an epoch; published: TRELLIS's own sampler, which pads epochs and "
        "drops their last batch",
    )

    @field_validator("roots", mode="before")
    @classmethod
    def _joined(cls, value: Any) -> Any:
        if isinstance(value, str | Path):
            return [part.strip() for part in str(value).split(",") if part.strip()]
        return value


class OfficialConfig(ObjectsConfig):
    """The same for TRELLIS's layout, where the condition may also be a text."""

    latent_model: str
    condition: Literal["image", "text"] = Field("image", description="a picture of renders_cond, or a caption")

    def filters(self) -> list[Filter]:
        """What a row of the table must pass, in order, under the names of the published statistics."""
        if self.condition == "image":
            return [Filter("Cond rendered", has("cond_rendered"))]
        return [Filter("With captions", filled(CAPTIONS))]


class StructureConfig(OfficialConfig):
    """Structure latents of ``ss_latents``."""

    latent_model: str = Field("ss_enc_conv3d_16l8_fp16", description="folder of ss_latents, the name of its encoder")
    normalisation: Normalisation | None = Field(
        None, description="mean and std of each latent channel; none: as stored (all official structure configs)"
    )

    def filters(self) -> list[Filter]:
        return [
            Filter("With sparse structure latents", has(f"ss_latent_{self.latent_model}")),
            Filter(f"Aesthetic score >= {self.min_aesthetic}", at_least("aesthetic_score", self.min_aesthetic)),
            *super().filters(),
        ]


class LatentsConfig(OfficialConfig, PackedDataConfig):
    """Structured latents of ``latents``."""

    latent_model: str = Field(
        "dinov2_vitl14_reg_slat_enc_swin8_B_64l8_fp16", description="folder of latents: feature model and encoder"
    )
    max_voxels: int = Field(32768, ge=1, description="most voxels of an object")
    normalisation: Normalisation | Literal["teacher", "stored"] = Field(
        "teacher", description="mean and std of each latent channel; teacher: the teacher's own; stored: none"
    )

    @model_validator(mode="after")
    def _one_rule(self) -> LatentsConfig:
        if self.order == "published" and self.voxel_budget is not None:
            raise ValueError("order 'published' takes batches by count: leave voxel_budget out, or use order 'stream'")
        return self

    def filters(self) -> list[Filter]:
        return [
            Filter("With latent", has(f"latent_{self.latent_model}")),
            Filter(f"Aesthetic score >= {self.min_aesthetic}", at_least("aesthetic_score", self.min_aesthetic)),
            Filter(f"Num voxels <= {self.max_voxels}", at_most("num_voxels", self.max_voxels)),
            *super().filters(),
        ]
