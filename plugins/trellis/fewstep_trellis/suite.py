"""``fewstep bench`` on structures: shapes against the true held-out objects and against the teacher's own results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.batch import Batch, Condition
from fewstep.bench.contact import Picture, contact_sheet
from fewstep.errors import FewstepError, invalid
from fewstep.layout import Dense, Layout
from fewstep.metrics import agreement, chamfer, volume_iou
from fewstep.suite import Suite
from fewstep_trellis.dataset import PreparedObjects
from fewstep_trellis.features import SIZE, ImageEncoder
from fewstep_trellis.shapes import MetricNet, Shapes, ViewEncoder, distances
from fewstep_trellis.voxel_render import AZIMUTHS, render_views

TILE, SUFFIXES = 160, (".png", ".npz")
LEGEND = {
    "frechet": "4 rendered views of each object, EfficientNet-Lite2 (the condition comes from another network), all "
    "views pooled, on 32 principal components of the true objects' views",
    "kid": "the same features, the 4 views of an object joined; unbiased, each object's own partner left out",
    "teacher_frechet, teacher_kid": "the same distances to the teacher's own samples from the same noise",
    "iou, chamfer": "to the true object; chamfer in sides of the grid",
    "agree_iou, agree_latent": "with the teacher's own sample from the same noise: IoU, and R squared of the latents",
}


class StructureSuite(Suite):
    """Held-out objects and what is measured on them.

    The reference of the distribution distances is the N true objects whose pictures are asked for and no others, so
    that the choice of objects, the same on both sides, adds nothing to the distance.

    Args:
        occupancy: the true objects, [N, R, R, R], occupied above 0.5.
        x0: their latents [N, C, r, r, r].
        tokens: image tokens [N, L, Cc].
        pictures: condition pictures, RGB uint8 [H, W, 3] each.
        decoder: latents [B, C, r, r, r] to logits [B, 1, R, R, R], occupied above 0.
        encoder: pictures [B, 3, 224, 224] in [0, 1] to tokens; None where conditions are not timed or made.
        metric: pictures [B, H, W] to features [B, F]; None takes ``MetricEncoder``.
        azimuths: of the pictures' cameras in degrees, for the contact sheet.

    Raises:
        FewstepError: for fewer than 2 objects, or arguments of different length.
    """

    headline = "frechet"
    lower_is_better = frozenset({"chamfer", "frechet", "kid", "teacher_frechet", "teacher_kid"})
    charts = ("teacher_frechet", "agree_iou")
    legend = LEGEND

    def __init__(
        self,
        occupancy: Tensor,
        x0: Tensor,
        tokens: Tensor,
        pictures: Sequence[Picture],
        decoder: nn.Module,
        *,
        encoder: ImageEncoder | None = None,
        metric: MetricNet | None = None,
        azimuths: Sequence[float] | None = None,
    ) -> None:
        self.truth, self.x0, self.tokens, self.pictures = occupancy > 0.5, x0, tokens, list(pictures)
        self.decoder, self.encoder, self.views = decoder, encoder, ViewEncoder(metric)
        self.azimuths = list(azimuths) if azimuths is not None else [AZIMUTHS[0]] * len(occupancy)
        lengths = {len(part) for part in (occupancy, x0, tokens, self.pictures, self.azimuths)}
        if len(lengths) > 1 or len(occupancy) < 2:
            raise invalid("held-out objects", sorted(lengths), "at least 2, as many of each kind")
        self.device, self._features = torch.device("cpu"), torch.zeros(0)

    @classmethod
    def of(cls, data: PreparedObjects, decoder: nn.Module) -> StructureSuite:
        """The held-out objects of a prepared set in one shuffled order, so that the first few are a fair sample."""
        batch, test = data.held_out(), data.set.test
        order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
        rows = [int(row) for row in test[order.numpy()]]
        tokens = batch.cond.tokens
        if tokens is None:
            raise FewstepError("prepared objects without image tokens cannot be measured")
        return cls(
            data.set.occupancy(rows)[:, 0],
            batch.x0[order],
            tokens[order],
            [data.set.picture(row) for row in rows],
            decoder,
            encoder=ImageEncoder(data.set.basis()),
            azimuths=[float(data.set.table[row]["cameras"].partition("/")[0]) for row in rows],
        )

    def to(self, device: torch.device) -> None:
        self.device = device
        self.decoder.to(device)
        self.views.to(device)
        if self.encoder is not None:
            self.encoder.to(device)

    def prompts(self, limit: int | None = None) -> Batch:
        x0 = self.x0[:limit]
        return Batch(x0, Dense(len(x0)), Condition(self.tokens[:limit]))

    @torch.inference_mode()
    def condition(self, limit: int | None = None) -> None:
        if self.encoder is not None:
            stack = torch.from_numpy(np.stack(self.pictures[:limit])).permute(0, 3, 1, 2).float() / 255
            self.encoder(F.interpolate(stack.to(self.device), (SIZE, SIZE), mode="bilinear", antialias=True))

    def prompt_from(self, image: Path) -> Batch:
        if self.encoder is None:
            return super().prompt_from(image)
        tokens = self.encoder.encode_files([image]).to(self.tokens)
        return Batch(torch.zeros_like(self.x0[:1]), Dense(1), Condition(tokens))

    @torch.inference_mode()
    def decode(self, x: Tensor, layout: Layout) -> Shapes:
        """Shapes of latents [N, C, r, r, r]; small chunks keep the activations in a processor's cache."""
        chunk = 4 if self.device.type == "cpu" else 64
        grids = [self.decoder(part.to(self.device))[:, 0].cpu() > 0 for part in x.split(chunk)]
        return Shapes(torch.cat(grids), x.cpu(), self.views)

    def measure(self, objects: Any, teacher_objects: Any) -> dict[str, float]:
        shapes, teacher = Shapes.check(objects), Shapes.check(teacher_objects)
        truth = self.truth[: len(shapes.grids)]
        return {
            **distances("", shapes.features, self._true_features(len(truth))),
            **distances("teacher_", shapes.features, teacher.features),
            "iou": float(volume_iou(shapes.grids, truth).mean()),
            "chamfer": float(chamfer(shapes.grids, truth).mean()),
            "agree_iou": float(volume_iou(shapes.grids, teacher.grids).mean()),
            "agree_latent": agreement(shapes.latents, teacher.latents),
        }

    def _true_features(self, count: int) -> Tensor:
        """[count, V, F], computed once."""
        if len(self._features) < count:
            self._features = self.views(self.truth[:count])
        return self._features[:count]

    def sheet(self, rows: Sequence[tuple[str, Any]], path: Path, count: int) -> None:
        """Condition pictures, true objects, then a row for each (label, objects), seen from the picture's azimuth."""
        drawn = [("picture", self.pictures[:count]), ("true object", self._draw(self.truth[:count]))]
        drawn += [(label, self._draw(Shapes.check(objects).grids[:count])) for label, objects in rows]
        contact_sheet(drawn, path, TILE)

    def _draw(self, grids: Tensor) -> list[Picture]:
        views = zip(grids, self.azimuths, strict=False)
        return [render_views(grid[None], [azimuth], size=TILE)[0, 0].numpy() for grid, azimuth in views]

    def write(self, objects: Any, path: Path) -> list[Path]:
        """Four views of each shape (``.png``), or the grids (``.npz``, bool [N, R, R, R]); into a folder both.

        Raises:
            FewstepError: for another suffix.
        """
        if path.suffix and path.suffix not in SUFFIXES:
            raise invalid("--out", str(path), f"a name ending in {' or '.join(SUFFIXES)}, or a folder")
        files = [path] if path.suffix else [path / f"samples{suffix}" for suffix in SUFFIXES]
        grids = Shapes.check(objects).grids
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".npz":
                np.savez_compressed(file, occupancy=grids.numpy())
            else:
                views = render_views(grids, size=TILE).numpy()
                contact_sheet([(f"{number}", list(four)) for number, four in enumerate(views, 1)], file, TILE)
        return files
