"""The data sets of TRELLIS.2's stages: TRELLIS's own, with other files, tables and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from fewstep_trellis.normalisation import Normalisation
from fewstep_trellis.official.condition import Draw
from fewstep_trellis.official.dataset import (
    OfficialDataset,
    StructuredLatents,
    StructureLatents,
    wanted_normalisation,
)
from fewstep_trellis.official.encode import Conditions, ImageConditions
from fewstep_trellis.official.files import ItemError, read_frames
from fewstep_trellis.official.fits import Fits
from fewstep_trellis.official.items import Item
from fewstep_trellis.official.latents import read_grid, read_voxels
from fewstep_trellis.official.network import arguments_of
from fewstep_trellis.official.selection import Selection, chosen
from fewstep_trellis.official.table import Row, check_roots
from torch import Tensor

from fewstep.core.batch import Batch
from fewstep.core.layout import Packed
from fewstep_trellis2.conditioning import image_conditioner
from fewstep_trellis2.dataset.config import (
    ENCODER,
    FineShapeDataConfig,
    ShapeDataConfig,
    StructureDataConfig,
    TextureDataConfig,
    Trellis2Config,
)
from fewstep_trellis2.dataset.roots import MergedRow, merged, read_roots
from fewstep_trellis2.latents import TextureCondition

MARGIN = 1.0  # side of a picture in units of its object


class Trellis2Dataset(OfficialDataset):
    """What the stages share: merged tables, and pictures without a margin, encoded by a DINOv3."""

    Config: ClassVar[Any]

    @classmethod
    def check_config(cls, config: Any) -> None:
        read_roots(config.roots)

    @classmethod
    def taken(cls, arguments: Mapping[str, Any]) -> Fits:
        """The sizes of latents that a network with these arguments makes."""
        # Output channels, since the texture flow takes shape latents too. A flow on voxels has no largest grid.
        side = arguments.get("resolution") if cls.layout == "dense" else None
        return Fits(arguments.get("out_channels"), side)

    @staticmethod
    def item(
        row: MergedRow, fits: Fits, normalisation: Normalisation | None = None, beside: Normalisation | None = None
    ) -> Item:
        """The latents of a row. Raises ItemError.

        Args:
            normalisation: of the latents.
            beside: of the shape latents of the same voxels.
        """
        raise NotImplementedError

    def _selected(self) -> Selection:
        return selected(self.config)

    def _fits(self) -> Fits:
        return self.taken(arguments_of(self.backbone))

    def _conditions(self) -> Conditions:
        return ImageConditions(self.config, self.backbone, image_conditioner, ENCODER, MARGIN)

    def _check_there(self, row: Row) -> None:
        assert isinstance(row, MergedRow)
        check_roots(list(row.folders.values()))

    def _item(self, row: Row, draw: Draw) -> Item:
        assert isinstance(row, MergedRow)
        item = self.item(row, self.fits, self.normalisation, self._beside())
        pictures = condition_pictures(row)
        return replace(item, picture=pictures[draw(len(pictures))])

    def _beside(self) -> Normalisation | None:
        return None


def selected(config: Trellis2Config) -> Selection:
    """The objects that a config asks for."""
    tables = [(Path(root.name), merged(root)) for root in read_roots(config.roots)]
    return chosen(tables, config.filters())


def condition_pictures(row: MergedRow) -> list[Path]:
    """The object's condition pictures. Raises ItemError without a usable transforms.json."""
    folder = row.folder("render_cond") / row.sha256
    return [folder / str(frame["file_path"]) for frame in read_frames(folder)]


class StructureData(Trellis2Dataset, StructureLatents):
    """Structure latents [B, C, r, r, r]."""

    Config = StructureDataConfig

    @staticmethod
    def item(
        row: MergedRow, fits: Fits, normalisation: Normalisation | None = None, beside: Normalisation | None = None
    ) -> Item:
        return Item(read_grid(row.file("ss_latent"), "z", fits, normalisation))


class ShapeData(Trellis2Dataset, StructuredLatents):
    """Shape latents [T, C], ``Packed`` with their voxels."""

    Config = ShapeDataConfig
    count = "shape_latent_tokens"

    @staticmethod
    def item(
        row: MergedRow, fits: Fits, normalisation: Normalisation | None = None, beside: Normalisation | None = None
    ) -> Item:
        coords, feats = read_voxels(row.file("shape_latent"), "", fits, normalisation)
        return Item(feats, coords)


class FineShapeData(ShapeData):
    """Shape latents on the finer grid."""

    Config = FineShapeDataConfig


@dataclass(frozen=True)
class TextureItem(Item):
    """Texture latents, and the shape latents [N, C] of the same voxels."""

    shape: Tensor | None = None


class TextureData(ShapeData):
    """Texture latents [T, C], with the shape latents of the same voxels in a ``TextureCondition``."""

    Config = TextureDataConfig
    count = "pbr_latent_tokens"

    @staticmethod
    def item(
        row: MergedRow, fits: Fits, normalisation: Normalisation | None = None, beside: Normalisation | None = None
    ) -> Item:
        coords, feats = read_voxels(row.file("pbr_latent"), "", fits, normalisation)
        other, shape = read_voxels(row.file("shape_latent"), "", Fits(), beside)
        if not torch.equal(coords, other):
            raise ItemError(
                f"{row.file('pbr_latent')}: voxels that differ from those of the shape latents, or in their order"
            )
        return TextureItem(feats, coords, shape=shape)

    def _beside(self) -> Normalisation | None:
        return wanted_normalisation(self.config.shape_normalisation, "shape_normalisation", self.backbone)

    def collate(self, items: Sequence[Item]) -> Batch:
        batch = super().collate(items)
        shapes = [item.shape for item in items if isinstance(item, TextureItem) and item.shape is not None]
        assert isinstance(batch.layout, Packed)
        assert batch.cond.tokens is not None
        cond = TextureCondition.of(batch.cond, torch.cat(shapes), batch.layout, max(self.loads()))
        return replace(batch, cond=cond.to(batch.cond.tokens.device))
