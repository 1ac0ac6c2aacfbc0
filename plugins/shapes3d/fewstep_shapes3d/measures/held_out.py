"""What the suites of both stages share: held-out objects in one order, their pictures, and the encoder of these."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.core.batch import Batch
from fewstep.core.suite import Exhibit, Rows, SheetRow, Suite
from fewstep.errors import invalid
from fewstep_shapes3d.data.prepared import PreparedSet
from fewstep_shapes3d.export.contact import Picture, as_png, closer, compared, strip
from fewstep_shapes3d.export.glb import glb
from fewstep_shapes3d.export.portrait import portrait
from fewstep_shapes3d.measures.features import SIZE, ImageEncoder
from fewstep_shapes3d.mesh.coarse import coarse
from fewstep_shapes3d.pictures.white import on_white
from fewstep_shapes3d.representations import Mesh
from fewstep_shapes3d.voxel_render import AZIMUTHS

SHEET_TILE = 168  # pixels of a picture on a contact sheet
ROOM = 1.5  # size of the frame that holds the whole cube, relative to that of an object


@dataclass(frozen=True)
class HeldOut:
    """The test objects of a prepared set in one shuffled order, so that the first few are a fair sample.

    Args:
        rows: their indices in the set.
        order: their places among the test objects, int64 [N].
        tokens: of their pictures [N, L, Cc].
        pictures: RGB uint8 [H, W, 3] each.
        azimuths: of the pictures' cameras in degrees.
        encoder: makes such tokens of other pictures.
    """

    rows: list[int]
    order: Tensor
    tokens: Tensor
    pictures: list[Picture]
    azimuths: list[float]
    encoder: ImageEncoder

    @classmethod
    def of(cls, data: PreparedSet) -> HeldOut:
        """The held-out objects of a set, the same for every stage. Raises FewstepError if there are fewer than 2."""
        if (count := len(data.test)) < 2:
            accepted = f"a set with at least 2 held-out objects; this one has {count}: prepare more objects"
            raise invalid("data.root", str(data.folder), accepted)
        order = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))
        rows = [int(row) for row in data.test[order.numpy()]]
        pictures = [data.picture(row) for row in rows]
        azimuths = [float(data.table[row]["cameras"].partition("/")[0]) for row in rows]
        return cls(rows, order, data.tokens(rows, 0, False), pictures, azimuths, ImageEncoder(data.basis()))


@dataclass(frozen=True)
class Pictured(Batch):
    """Prompts with their pictures, uint8 [B, H, W, 3], to be shown beside what was made."""

    pictures: Tensor = field(default_factory=lambda: torch.zeros(0))


def shown(prompts: Batch | None, count: int) -> list[list[Picture]]:
    """The picture of each of ``count`` samples as the beginning of its row; empty rows if it is not known."""
    return [[picture.numpy()] for picture in prompts.pictures] if isinstance(prompts, Pictured) else [[]] * count


class PictureSuite(Suite):
    """A suite whose conditions are pictures. ``rule`` says in words what ``closeness`` is.

    Args:
        tokens: image tokens [N, L, Cc].
        pictures: condition pictures, RGB uint8 [H, W, 3] each.
        encoder: pictures [B, 3, 224, 224] in [0, 1] to tokens; None if conditions are neither timed nor made.
        azimuths: of the pictures' cameras in degrees, for the contact sheet.

    Raises:
        FewstepError: for fewer than 2 objects, or arguments of different length.
    """

    rule: str

    def __init__(
        self,
        tokens: Tensor,
        pictures: Sequence[Picture],
        encoder: ImageEncoder | None = None,
        azimuths: Sequence[float] | None = None,
    ) -> None:
        self.tokens, self.pictures, self.encoder = tokens, list(pictures), encoder
        self.azimuths = list(azimuths) if azimuths is not None else [AZIMUTHS[0]] * len(tokens)
        self.device = torch.device("cpu")

    def pictured(self, batch: Batch) -> Pictured:
        """The first held-out prompts with their pictures."""
        first = np.stack(self.pictures[: batch.layout.batch_size])
        return Pictured(batch.x0, batch.layout, batch.cond, torch.from_numpy(first))

    def check_lengths(self, *more: Sequence[object] | Tensor) -> None:
        """Raise FewstepError unless all are of the same number of objects, at least 2."""
        lengths = {len(part) for part in (self.tokens, self.pictures, self.azimuths, *more)}
        if len(lengths) > 1 or len(self.tokens) < 2:
            raise invalid("held-out objects", sorted(lengths), "at least 2, as many of each kind")

    def to(self, device: torch.device) -> None:
        self.device = device
        if self.encoder is not None:
            self.encoder.to(device)

    @torch.inference_mode()
    def condition(self, limit: int | None = None) -> None:
        if self.encoder is not None:
            stack = torch.from_numpy(np.stack(self.pictures[:limit])).permute(0, 3, 1, 2).float() / 255
            self.encoder(F.interpolate(stack.to(self.device), (SIZE, SIZE), mode="bilinear", antialias=True))

    @abstractmethod
    def closeness(self, objects: Any) -> Tensor:
        """How close objects are to the true ones, [N]; larger is closer. Only these can be on a contact sheet."""

    @abstractmethod
    def meshes(self, objects: Any, chosen: Sequence[int]) -> list[Mesh]:
        """Some of the objects as coloured meshes, for display."""

    @abstractmethod
    def truth_row(self, chosen: Sequence[int]) -> SheetRow:
        """The true objects, as meshes."""

    def sheet(self, rows: Rows, path: Path, count: int) -> None:
        """Condition pictures, true objects, then a row for each of ``rows``: objects from the best to the worst."""
        scores = self._scores(rows)
        chosen = from_best_to_worst(scores, count)
        order = "from the best (left) to the worst (right), evenly spaced when ranked by"
        caption = f"{len(chosen)} of {len(scores)} objects, {order} {self.rule}."
        compared(self._drawn(rows, chosen), path, caption, SHEET_TILE)

    def strip(self, rows: Rows, path: Path, count: int) -> None:
        """``count`` objects below each other: condition picture, true object, and what each of ``rows`` made of it."""
        scores = self._scores(rows)
        chosen = evenly_ranked(scores, count)
        parts = f"the middle one of each of {len(chosen)} equal parts, from the best"
        caption = f"{len(chosen)} of {len(scores)} held-out objects: ranked by {self.rule}, {parts}."
        strip(self._drawn(rows, chosen), path, caption, SHEET_TILE)

    def gallery(self, rows: Rows, count: int) -> list[Exhibit]:
        """The objects of a strip as coarse meshes."""
        chosen = evenly_ranked(self._scores(rows), count)
        columns = [self.truth_row(chosen).objects, *(self.meshes(row.objects, chosen) for row in SheetRow.of(rows))]
        models = [[glb(coarse(mesh), normals=False) if mesh.success else b"" for mesh in column] for column in columns]
        return [
            Exhibit(f"object {one + 1}", as_png(on_white(self.pictures[one])), truth, tuple(made), self.azimuths[one])
            for one, truth, *made in zip(chosen, *models, strict=True)
        ]

    def _scores(self, rows: Rows) -> Tensor:
        """The mean closeness of each object over all rows."""
        return torch.stack([self.closeness(row.objects) for row in SheetRow.of(rows)]).mean(0)

    def _drawn(self, rows: Rows, chosen: Sequence[int]) -> list[SheetRow]:
        """Condition pictures, true objects and ``rows`` as the cameras of the pictures see them."""
        made = [replace(row, objects=self.meshes(row.objects, chosen)) for row in SheetRow.of(rows)]
        below = [self.truth_row(chosen), *made]
        azimuths = [self.azimuths[one] for one in chosen]
        drawn = [[portrait(*pair, round(ROOM * SHEET_TILE)) for pair in zip(row.objects, azimuths, strict=True)]
                 for row in below]  # fmt: skip
        given = SheetRow("picture", [on_white(self.pictures[one]) for one in chosen], ("what the flow is given",))
        pairs = zip(below, closer(drawn), strict=True)
        return [given, *(replace(row, objects=pictures) for row, pictures in pairs)]


def from_best_to_worst(scores: Tensor, count: int) -> list[int]:
    """Indices of ``count`` scores, evenly spaced by rank; the best and the worst are among them."""
    order = scores.argsort(descending=True, stable=True)
    places = torch.linspace(0, len(scores) - 1, min(count, len(scores))).round().long()
    return [int(index) for index in order[places]]


def evenly_ranked(scores: Tensor, count: int) -> list[int]:
    """Indices of the middle scores of ``count`` equal parts of the ranking, the best part first."""
    order, parts = scores.argsort(descending=True, stable=True), min(count, len(scores))
    places = (torch.arange(parts) + 0.5) * len(scores) / parts
    return [int(order[int(place)]) for place in places]
