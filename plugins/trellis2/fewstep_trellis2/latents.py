"""The shape and texture stages as ``Backbone``s on packed voxels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import torch
from fewstep_trellis.normalisation import Normalisation
from fewstep_trellis.shipped import existing
from fewstep_trellis.slat import StructuredLatentFlow
from pydantic import Field
from torch import Tensor, nn

from fewstep.config.base import validate
from fewstep.core.batch import Batch, Condition
from fewstep.core.layout import Layout, Packed
from fewstep.errors import FewstepError, invalid
from fewstep.files import write_json
from fewstep.texts import read_json
from fewstep_trellis2.configs import FOLDER
from fewstep_trellis2.flow import COARSE, FINE, GUIDANCE, HUB, INTERVAL, RESCALE, STAGES, MeasuredStage, StageConfig
from fewstep_trellis2.models import MODELS, SLatFlowModel

MEANING = "mean and std of the {} latents; none: those of pipeline.json in the teacher's folder or above"
SHAPE_FILE = "shape_normalisation.json"
S = TypeVar("S", bound="ShapeStage")
X = TypeVar("X", bound="TextureStage")


class ShapeConfig(StageConfig):
    """Which shape flow is distilled, and how its teacher is guided."""

    teacher: Path = Field(
        Path(f"{HUB}/slat_flow_img2shape_dit_1_3B_512_bf16"),
        description="shape-flow checkpoint (json + safetensors pair)",
    )
    normalisation: Normalisation | None = Field(None, description=MEANING.format("shape"))


class FineShapeConfig(ShapeConfig):
    """The same for the flow that was tuned on the finer grid, 64 cells on a side."""

    teacher: Path = Field(
        Path(f"{HUB}/slat_flow_img2shape_dit_1_3B_1024_bf16"),
        description="shape-flow checkpoint (json + safetensors pair)",
    )


class TextureConfig(StageConfig):
    """Which texture flow is distilled; its official teachers are not guided."""

    teacher: Path = Field(
        Path(f"{HUB}/slat_flow_imgshape2tex_dit_1_3B_1024_bf16"),
        description="texture-flow checkpoint (json + safetensors pair); that for 512 ends in _512_bf16",
    )
    guidance: float = Field(1.0, ge=0, description=GUIDANCE)
    interval: tuple[float, float] = Field((0.6, 0.9), description=INTERVAL)
    guidance_rescale: float = Field(0.0, ge=0, le=1, description=RESCALE)
    normalisation: Normalisation | None = Field(None, description=MEANING.format("texture"))
    shape_normalisation: Normalisation | None = Field(None, description=MEANING.format("shape"))


class ShapeStage(MeasuredStage, StructuredLatentFlow):
    """Velocity of shape latents [T, 32] on the occupied voxels of ``layout`` under tokens [B, L, 1024]."""

    Config: ClassVar[Any] = ShapeConfig
    name, network, models, stored = "trellis2-shape", SLatFlowModel, MODELS, torch.bfloat16
    dataset, stage, stages, published = "trellis2-shape", "shape", STAGES, FOLDER
    normalisation_key = "shape_slat_normalization"
    tokens = COARSE
    beside: ClassVar[bool] = False  # whether the network takes shape latents in addition to its own

    @classmethod
    def initial(cls: type[S], config: Any) -> S:
        backbone = super().initial(config)
        added = backbone.model.in_channels - backbone.model.out_channels
        if (added > 0) is not cls.beside:
            got = f"{config.teacher}, which takes {added} channels beside its own {backbone.model.out_channels}"
            raise invalid(
                "backbone.teacher", got, f"a {'texture' if cls.beside else 'shape'} flow for stage {cls.stage!r}"
            )
        return backbone

    def taps(self) -> list[tuple[nn.Module, int]]:
        return [(block, self.model.model_channels) for block in self.model.blocks]


class FineShapeStage(ShapeStage):
    """The same with another teacher, on voxels of the finer grid."""

    Config = FineShapeConfig
    name, stage, dataset = "trellis2-shape-1024", "shape-1024", "trellis2-shape-1024"
    tokens, voxels = FINE, 32768


@dataclass(frozen=True, eq=False)
class TextureCondition(Condition):
    """Image tokens, and the normalised shape latents of the voxels that get a texture.

    Args:
        shape: [B, N, 32], a row for each voxel of a sample, in the layout's order, then padding of any value.
    """

    shape: Tensor | None = None

    @classmethod
    def of(cls, cond: Condition, shape: Tensor, layout: Packed, length: int = 0) -> TextureCondition:
        """``cond`` with shape latents [T, 32] that are packed as ``layout``, padded to ``length`` rows at least."""
        rows = [*shape.split(layout.lengths_list), shape.new_zeros(length, shape.shape[1])]
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)[:-1]
        return cls(**vars(cond), shape=padded)

    def rows(self, layout: Packed) -> Tensor:
        """[T, 32], as ``layout`` packs them."""
        assert self.shape is not None
        place = torch.arange(layout.rows, device=self.shape.device) - layout.cu_seqlens[layout.index]
        return self.shape[layout.index, place]


class TextureStage(ShapeStage):
    """Velocity of texture latents [T, 32] given the shape latents of a ``TextureCondition``.

    Args:
        model, normalisation: as of ``StructuredLatentFlow``.
        shape_normalisation: the same for the shape latents.
    """

    Config = TextureConfig
    name, stage, dataset, beside = "trellis2-texture", "texture", "trellis2-texture", True
    normalisation_key = "tex_slat_normalization"
    tokens, voxels = FINE, 32768

    def __init__(
        self,
        model: nn.Module,
        normalisation: Normalisation | None = None,
        shape_normalisation: Normalisation | None = None,
    ) -> None:
        super().__init__(model, normalisation)
        self.shape_normalisation = shape_normalisation

    def velocity(self, x: Tensor, t_B: Tensor, s_B: Tensor | None, cond: Condition, layout: Layout) -> Tensor:
        if not isinstance(cond, TextureCondition) or cond.shape is None or not isinstance(layout, Packed):
            raise FewstepError(f"backbone {self.name!r} needs a Packed layout, and shape latents in a TextureCondition")
        return cast(Tensor, self.model(x, t_B, cond, layout, s=s_B, concat_cond=cond.rows(layout)))

    def example(self, samples: int) -> Batch:
        batch, channels = super().example(samples), self.model.in_channels - self.model.out_channels
        shape = torch.empty(samples, len(batch.x0) // samples, channels, device="meta")
        return replace(batch, cond=TextureCondition(**vars(batch.cond), shape=shape))

    @classmethod
    def initial(cls: type[X], config: Any) -> X:
        backbone, file = super().initial(config), existing("backbone.teacher", config.teacher)
        beside = Normalisation.beside(file, ShapeStage.normalisation_key)
        backbone.shape_normalisation = config.shape_normalisation or beside
        return backbone

    def save(self, folder: Path, *, half: bool = False) -> None:
        super().save(folder, half=half)
        if self.shape_normalisation is not None:
            write_json(folder / SHAPE_FILE, self.shape_normalisation.model_dump(mode="json"))

    @classmethod
    def load(cls: type[X], folder: Path) -> X:
        backbone, file = super().load(folder), folder / SHAPE_FILE
        if file.is_file():
            backbone.shape_normalisation = validate(Normalisation, read_json(file))
        return backbone
