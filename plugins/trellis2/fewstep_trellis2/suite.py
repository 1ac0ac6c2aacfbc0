"""``fewstep bench`` on latents: against the true ones of other objects and against the teacher's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from fewstep_shapes3d.export.contact import Picture, compared
from fewstep_shapes3d.measures.held_out import evenly_ranked
from fewstep_shapes3d.measures.shapes import teacher_distances
from fewstep_shapes3d.pictures.white import on_white
from fewstep_shapes3d.sparse.geometry import coords_of
from fewstep_trellis.official.condition import prepared_picture
from torch import Tensor

from fewstep.core.batch import Batch
from fewstep.core.layout import Layout, Packed, add_rows
from fewstep.core.suite import Record, Rows, SheetRow, Suite, Unmeasured
from fewstep.files import file_suffix
from fewstep.metrics.features import principal_axes
from fewstep.metrics.resampled import described, frechet_resampled, mean_resampled
from fewstep_trellis2.dataset.sets import MARGIN, Trellis2Dataset

OBJECTS, PLACES, TILE = 64, 256, 168  # objects by default; latents of each in a distance; pixels of a picture
LEGEND = {
    "frechet": f"{PLACES} latents of each object, at places drawn once, pooled, against the true ones: all channels",
    "rms": "root mean square difference to the true latents, in the flow's units",
    "other_frechet": "frechet to the teacher's samples from other noise; the teacher's own row is the floor",
    "teacher_frechet": "frechet to the teacher's samples from the same noise",
    "teacher_rms": "the same to the teacher's own sample from the same noise",
    "agree_latent": "R squared of the latents with the teacher's own from the same noise",
}


@dataclass(frozen=True)
class Latents:
    """Samples ``x`` of a flow on ``layout``, and the same as a row for each cell or voxel: [T, C] on ``places``."""

    x: Tensor
    rows: Tensor
    places: Packed

    @classmethod
    def of(cls, x: Tensor, layout: Layout) -> Latents:
        """Of [B, C, r, r, r], or of [T, C] on voxels."""
        if isinstance(layout, Packed):
            return cls(x, x, layout)
        grid = torch.cartesian_prod(*map(torch.arange, x.shape[2:])).int()
        places = Packed.of_lengths([len(grid)] * len(x), grid.repeat(len(x), 1))
        return cls(x, x.movedim(1, -1).flatten(0, 3), places)


class LatentSuite(Unmeasured):
    """The first objects of a data set in TRELLIS.2's layout, each under one of its pictures. What a flow samples is
    measured as it is, without a decoder.

    Whether students were trained on these objects is not known here.
    """

    headline = "frechet"
    lower_is_better = frozenset({"frechet", "rms", "other_frechet", "teacher_frechet", "teacher_rms"})
    signed = frozenset({"agree_latent"})
    charts = ("other_frechet", "teacher_rms")
    nearness = "rms"
    titles: Mapping[str, str] = {
        "frechet": "Fréchet distance of latents",
        "other_frechet": "Fréchet distance to the teacher's latents, other noise",
        "teacher_frechet": "Fréchet distance to the teacher's latents, same noise",
        "rms": "distance to the true latents",
        "teacher_rms": "distance to the teacher's latents",
    }
    legend = LEGEND
    suffixes = (".npz", ".png")
    dataset: Trellis2Dataset
    measure = Suite.measure

    def __init__(self, dataset: Trellis2Dataset) -> None:
        super().__init__(dataset)
        self.pictures: list[Path] = []
        self._batch: Batch | None = None
        self._true: Latents | None = None

    def to(self, device: torch.device) -> None:
        super().to(device)
        self.dataset.backbone.to(device)  # pictures are encoded there

    def prompts(self, limit: int | None = None) -> Batch:
        count = min(limit or OBJECTS, len(self.dataset))
        if self._batch is None or self._batch.layout.batch_size < count:
            items = self.dataset.items(list(range(count)), torch.Generator().manual_seed(0))
            self.pictures = [item.picture for item in items if item.picture is not None]
            self._batch, self._true = self.dataset.collate(items).to("cpu"), None
        return self._batch.select(torch.arange(count))

    def decode(self, x: Tensor, layout: Layout) -> Latents:
        return Latents.of(x.detach().float().cpu(), layout)

    def record(self, objects: Latents, teacher_objects: Latents) -> Record:
        own, same, places = objects.rows, teacher_objects.rows, objects.places
        truth = self._truth(places.batch_size).rows[: len(own)]
        return {
            "features": _drawn(objects),
            "rms": places.mean((own - truth).square()).sqrt(),
            "teacher_rms": places.mean((own - same).square()).sqrt(),
            "latent_error": places.sum((own - same).square()),
            "latent_spread": places.sum((same - same.mean(0)).square()),
        }

    def score(self, record: Record, teacher: Record, other: Record | None, counts: Tensor) -> dict[str, Tensor]:
        features = record["features"]
        error, spread = (mean_resampled(record[name], counts) for name in ("latent_error", "latent_spread"))
        return {
            "frechet": frechet_resampled(features, _drawn(self._truth(len(features)))[: len(features)], counts),
            **described("rms", record["rms"], counts),
            **teacher_distances(features, teacher, other, counts),
            **described("teacher_rms", record["teacher_rms"], counts),
            "agree_latent": 1 - error / spread,
        }

    def _truth(self, count: int) -> Latents:
        """Of at least the first ``count`` objects."""
        if self._true is None or self._true.places.batch_size < count:
            batch = self.prompts(count)
            self._true = self.decode(batch.x0, batch.layout)
        return self._true

    def sheet(self, rows: Rows, path: Path, count: int) -> None:
        """Condition pictures, true latents and those of ``rows``, seen from above: three principal components of these
        objects' true latents as colours, averaged over the height."""
        given = SheetRow.of(rows)
        number = given[0].objects.places.batch_size
        chosen = evenly_ranked(torch.zeros(number), count)
        truth = self._truth(number)
        mean, axes = principal_axes(truth.rows, 3)
        spread = ((truth.rows - mean) @ axes).std(0)

        def seen(objects: Latents) -> list[Picture]:
            colours = 0.5 + (objects.rows - mean) @ axes / (4 * spread)
            return [_from_above(colours, objects.places, one) for one in chosen]

        pictures = [_picture(self.pictures[one]) for one in chosen]
        drawn = [replace(row, objects=seen(row.objects)) for row in given]
        first = [SheetRow("picture", pictures), SheetRow("true latents", seen(truth))]
        caption = f"{len(chosen)} of {number} objects: three principal components of the latents, mean over the height."
        compared([*first, *drawn], path, caption, TILE)

    def write(self, objects: Any, path: Path, prompts: Batch | None = None) -> list[Path]:
        """The sheet of the samples where the file is a .png, else their array."""
        if file_suffix(path) == ".png":
            return Suite.write(self, objects, path, prompts)
        return super().write(objects.x, path, prompts)


def _drawn(latents: Latents) -> Tensor:
    """[N, PLACES, C]: latents of each object, at the same places for everything that is sampled on its voxels."""
    places = latents.places
    share = torch.rand(PLACES, generator=torch.Generator().manual_seed(0))
    rows = (share * places.lengths[:, None]).long() + places.cu_seqlens[:-1, None]
    return latents.rows[rows]


def _picture(file: Path) -> Picture:
    """On white."""
    pixels = (prepared_picture(file, TILE, MARGIN) * 255).round().to(torch.uint8)
    return on_white(pixels.permute(1, 2, 0).numpy())


def _from_above(colours: Tensor, places: Packed, one: int) -> Picture:
    """Picture [S, S, 3] of an object from the colours [T, 3] of its cells; white where there are none."""
    values, layout = places.select(colours, torch.tensor([one]))
    at = coords_of(layout)[:, :2].long()
    side = int(coords_of(places).max()) + 1
    cell = at[:, 1] * side + at[:, 0]
    total = add_rows(torch.cat([values, torch.ones_like(values[:, :1])], 1), cell, side**2)
    mean = torch.where(total[:, 3:] > 0, total[:, :3] / total[:, 3:].clamp(min=1), 1.0)
    return mean.clamp(0, 1).reshape(side, side, 3).flip(0).numpy()
