"""How ``fewstep data inspect`` reads TRELLIS.2's layout: as training does, without a network."""

from __future__ import annotations

from dataclasses import replace

from fewstep_trellis.official.fits import Fits
from fewstep_trellis.official.inspect import Source
from fewstep_trellis.official.items import Item
from fewstep_trellis.official.table import Row

from fewstep_trellis2.dataset.config import Trellis2Config
from fewstep_trellis2.dataset.roots import MergedRow
from fewstep_trellis2.dataset.sets import (
    MARGIN,
    FineShapeData,
    ShapeData,
    StructureData,
    TextureData,
    Trellis2Dataset,
    condition_pictures,
    selected,
)


def source(dataset: type[Trellis2Dataset], count: str = "") -> Source:
    """How a stage's data set is read."""

    def read(row: Row, config: Trellis2Config, fits: Fits) -> Item:
        assert isinstance(row, MergedRow)
        return replace(dataset.item(row, fits), picture=condition_pictures(row)[0])

    return Source(dataset.Config, selected, read, condition_pictures, dataset.taken, count, MARGIN)


SOURCES = {
    "structure": source(StructureData),
    "shape": source(ShapeData, ShapeData.count),
    "shape-1024": source(FineShapeData, FineShapeData.count),
    "texture": source(TextureData, TextureData.count),
}
