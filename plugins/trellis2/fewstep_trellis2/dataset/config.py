"""Configs of the data sets in TRELLIS.2's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fewstep_trellis.normalisation import Normalisation
from fewstep_trellis.official.config import ObjectsConfig
from fewstep_trellis.official.selection import Filter, at_least, at_most, has
from pydantic import Field, model_validator

from fewstep.core.dataset import PackedDataConfig

ENCODER = "facebook/dinov3-vitl16-pretrain-lvd1689m"
COUNTS = ("num_basecolor_tex", "num_metallic_tex", "num_roughness_tex")
OWN = Normalisation | Literal["teacher", "stored"]


class Trellis2Config(ObjectsConfig):
    """Which objects, how their pictures are encoded, and what happens to those that cannot be read."""

    roots: tuple[Path, ...] = Field(
        (), description="JSON files {name: {role: folder}} as TRELLIS.2's data_dir, joined by commas"
    )
    image_size: int = Field(512, ge=16, description="side of a condition picture as the encoder gets it, in pixels")
    encoder: str | None = Field(
        None, description=f"DINOv3 of the condition: a name on the hub, or a folder; none: {ENCODER}"
    )

    def filters(self) -> list[Filter]:
        """What a row must pass, in order, under the names of the published statistics."""
        return [
            Filter(f"Aesthetic score >= {self.min_aesthetic}", at_least("aesthetic_score", self.min_aesthetic)),
            *self.sizes(),
            Filter("Cond rendered", has("cond_rendered")),
        ]

    def sizes(self) -> list[Filter]:
        """Filters by number of voxels."""
        return []


class StructureDataConfig(Trellis2Config):
    """Structure latents."""

    normalisation: Normalisation | None = Field(
        None, description="mean and std of each latent channel; none: as stored (the official config)"
    )

    def filters(self) -> list[Filter]:
        return [Filter("With latent", has("ss_latent_encoded")), *super().filters()]


class ShapeDataConfig(Trellis2Config, PackedDataConfig):
    """Shape latents on voxels."""

    max_tokens: int = Field(8192, ge=1, description="most voxels of an object (official: 8192 at 512)")
    normalisation: OWN = Field(
        "teacher", description="mean and std of each latent channel; teacher: the teacher's own; stored: none"
    )

    @model_validator(mode="after")
    def _one_rule(self) -> ShapeDataConfig:
        if self.order == "published" and self.voxel_budget is not None:
            raise ValueError("order 'published' takes batches by count: leave voxel_budget out, or use order 'stream'")
        return self

    def filters(self) -> list[Filter]:
        return [Filter("With latent", has("shape_latent_encoded")), *super().filters()]

    def sizes(self) -> list[Filter]:
        return [Filter(f"Num tokens <= {self.max_tokens}", at_most("shape_latent_tokens", self.max_tokens))]


class FineShapeDataConfig(ShapeDataConfig):
    """Shape latents on the finer grid."""

    max_tokens: int = Field(32768, ge=1, description="most voxels of an object (official: 32768 at 1024)")
    image_size: int = Field(1024, ge=16, description="side of a condition picture as the encoder gets it, in pixels")


class TextureDataConfig(FineShapeDataConfig):
    """Texture latents, with the shape latents of the same voxels beside them."""

    shape_normalisation: OWN = Field("teacher", description="the same for the shape latents")
    full_pbr: bool = Field(False, description="only objects with maps of base colour, metallic and roughness")

    def filters(self) -> list[Filter]:
        rows = [
            Filter("With PBR latent", has("pbr_latent_encoded")),
            Filter("With shape latent", has("shape_latent_encoded")),
        ]
        return [*rows, *Trellis2Config.filters(self)]

    def sizes(self) -> list[Filter]:
        tokens = Filter(f"Num tokens <= {self.max_tokens}", at_most("pbr_latent_tokens", self.max_tokens))
        full = Filter("Full PBR", lambda row: all((row.number(name) or 0) > 0 for name in COUNTS))
        return [tokens, full] if self.full_pbr else [tokens]
