"""The data sets of TRELLIS.2's stages: TRELLIS's own, with other files, tables and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
)
from fewstep_trellis2.dataset.roots import MergedRow, merged, read_roots
from fewstep_trellis2.latents import TextureCondition


class Trellis2Dataset(OfficialDataset):
    """What the stages share: merged tables, pictures without a margin through a DINOv3."""

    @classmethod
    def check_config(cls, config: Any) -> None:
        read_roots(config.roots)

    def _selected(self) -> Selection:
        tables = [(Path(root.name), merged(root)) for root in read_roots(self.config.roots)]
        return chosen(tables, self.config.filters())

    def _fits(self) -> Fits:
        # Of what the flow puts out: the texture flow takes shape latents too. A flow on voxels knows no largest grid.
        arguments = arguments_of(self.backbone)
        side = arguments.get("resolution") if self.layout == "dense" else None
        return Fits(arguments.get("out_channels"), side)

    def _conditions(self) -> Conditions:
        return ImageConditions(self.config, self.backbone, image_conditioner, ENCODER, margin=1.0)

    def _check_there(self, row: Row) -> None:
        assert isinstance(row, MergedRow)
        check_roots(list(row.folders.values()))

    def _item(self, row: Row, draw: Draw) -> Item:
        assert isinstance(row, MergedRow)
        item = self._latents(row)
        pictures = condition_pictures(row)
        return replace(item, picture=pictures[draw(len(pictures))])

    def _latents(self, row: MergedRow) -> Item:
        """The item without its picture. Raises ItemError."""
        raise NotImplementedError


def condition_pictures(row: MergedRow) -> list[Path]:
    """The object's condition pictures. Raises ItemError without a usable transforms.json."""
    folder = row.folder("render_cond") / row.sha256
    return [folder / str(frame["file_path"]) for frame in read_frames(folder)]


class StructureData(Trellis2Dataset, StructureLatents):
    """Structure latents [B, C, r, r, r]."""

    Config = StructureDataConfig

    def _latents(self, row: MergedRow) -> Item:
        return Item(read_grid(row.file("ss_latent"), "z", self.fits, self.normalisation))


class ShapeData(Trellis2Dataset, StructuredLatents):
    """Shape latents [T, C], ``Packed`` with their voxels."""

    Config = ShapeDataConfig
    count = "shape_latent_tokens"

    def _latents(self, row: MergedRow) -> Item:
        coords, feats = read_voxels(row.file("shape_latent"), "", self.fits, self.normalisation)
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

    def _latents(self, row: MergedRow) -> Item:
        coords, feats, shape = texture_latent(row, self.normalisation, self._shape_normalisation(), self.fits)
        return TextureItem(feats, coords, shape=shape)

    def _shape_normalisation(self) -> Normalisation | None:
        return wanted_normalisation(self.config.shape_normalisation, "shape_normalisation", self.backbone)

    def collate(self, items: Sequence[Item]) -> Batch:
        batch = super().collate(items)
        shapes = [item.shape for item in items if isinstance(item, TextureItem) and item.shape is not None]
        assert isinstance(batch.layout, Packed)
        assert batch.cond.tokens is not None
        cond = TextureCondition.of(batch.cond, torch.cat(shapes), batch.layout, max(self.loads()))
        return replace(batch, cond=cond.to(batch.cond.tokens.device))


def texture_latent(
    row: MergedRow, texture: Normalisation | None, shape: Normalisation | None, fits: Fits
) -> tuple[Tensor, Tensor, Tensor]:
    """Voxels, texture latents and shape latents, rows of one order.

    Raises:
        ItemError: a file that is missing, damaged or does not fit, or files of different voxels.
    """
    coords, feats = read_voxels(row.file("pbr_latent"), "", fits, texture)
    other, beside = read_voxels(row.file("shape_latent"), "", Fits(), shape)
    if not torch.equal(coords, other):
        raise ItemError(f"{row.file('pbr_latent')}: other voxels, or in another order, than those of the shape latents")
    return coords, feats, beside
