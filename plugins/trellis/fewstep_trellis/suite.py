"""``fewstep bench`` on structures: shapes against the true held-out objects and against the teacher's own results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from fewstep_shapes3d.export.arrays import write_npz
from fewstep_shapes3d.export.contact import Picture, contact_sheet
from fewstep_shapes3d.export.preview import turntable
from fewstep_shapes3d.measures.features import ImageEncoder, preprocess
from fewstep_shapes3d.measures.held_out import HeldOut, Pictured, PictureSuite, shown
from fewstep_shapes3d.measures.occupancy import chamfer, volume_iou
from fewstep_shapes3d.measures.shapes import MetricNet, Shapes, ViewEncoder, distances, teacher_distances
from fewstep_shapes3d.mesh.voxels import voxel_mesh
from fewstep_shapes3d.pictures.loading import load_picture
from fewstep_shapes3d.pictures.preprocess import Background
from fewstep_shapes3d.representations import Mesh
from torch import Tensor, nn

from fewstep.core.batch import Batch, Condition
from fewstep.core.layout import Dense, Layout, Packed
from fewstep.core.suite import Record, SheetRow, Suite
from fewstep.errors import invalid
from fewstep.files import file_suffix
from fewstep.metrics.resampled import described, mean_resampled
from fewstep_trellis.dataset import PreparedObjects
from fewstep_trellis.latents import encode

TILE, SUFFIXES = 160, (".png", ".npz")
LEGEND = {
    "frechet": "4 rendered views of each object, EfficientNet-Lite2 (the condition comes from another network), all "
    "views pooled, on 32 principal components of the true objects' views",
    "frechet_infinity": "frechet extrapolated to infinitely many objects, from all, half and a quarter of them",
    "kid": "the same features, the 4 views of an object joined; unbiased, each object's own partner left out",
    "precision, recall": "share of objects within the support of the true ones, and the reverse, by the "
    "distance to the third nearest neighbour in the joined features",
    "other_frechet": "frechet to the teacher's samples from other noise; the teacher's own row is the floor",
    "teacher_frechet": "frechet to the teacher's samples from the same noise, which favours methods that "
    "preserve the teacher's map from noise to samples",
    "iou, chamfer": "to the true object; chamfer in sides of the grid",
    "empty": "share of objects without any voxel",
    "agree_iou, agree_latent": "with the teacher's own sample from the same noise: IoU, and R squared of the latents",
}


class StructureObjects(Suite):
    """Decoding of structure samples and writing of files, with or without measures. A subclass sets the attributes."""

    decoder: nn.Module
    views: ViewEncoder
    device: torch.device
    suffixes: tuple[str, ...] = SUFFIXES

    def to(self, device: torch.device) -> None:
        super().to(device)
        self.device = device
        self.decoder.to(device)
        self.views.to(device)

    @torch.inference_mode()
    def decode(self, x: Tensor, layout: Layout) -> Shapes:
        """Shapes of latents [N, C, r, r, r]; small chunks keep the activations in a processor's cache."""
        chunk = 4 if self.device.type == "cpu" else 64
        grids = [self.decoder(part.to(self.device))[:, 0].cpu() > 0 for part in x.split(chunk)]
        return Shapes(torch.cat(grids), x.cpu(), self.views)

    def following(self, objects: Any) -> Packed:
        """The occupied voxels of each shape, in C order."""
        grids = Shapes.check(objects).grids
        places = grids.nonzero()
        return Packed.of_index(places[:, 0], places[:, 1:].int(), len(grids))

    def write(self, objects: Any, path: Path, prompts: Batch | None = None) -> list[Path]:
        """Picture and four views of each shape (``.png``), or grids (``.npz``, bool [N, R, R, R]); into a folder both.

        Raises:
            FewstepError: for another suffix.
        """
        if (suffix := file_suffix(path)) not in ("", *SUFFIXES):
            raise invalid("--out", str(path), f"a name ending in {' or '.join(SUFFIXES)}, or a folder")
        files = [path] if suffix else [path / f"samples{suffix}" for suffix in SUFFIXES]
        grids = Shapes.check(objects).grids
        for file in files:
            if file.suffix.lower() == ".npz":
                write_npz({"occupancy": grids}, file)
            else:
                pairs = enumerate(zip(shown(prompts, len(grids)), map(voxel_mesh, grids), strict=True), 1)
                rows = [(f"{number}", [*seen, *turntable(mesh, 4, TILE)]) for number, (seen, mesh) in pairs]
                contact_sheet(rows, file, TILE)
        return files


class StructureSuite(StructureObjects, PictureSuite):
    """Held-out objects and what is measured on them.

    Samples are compared with exactly the N true objects whose pictures they were made from: with the same objects on
    both sides, their choice adds nothing to a distribution distance.

    Args: those of :class:`PictureSuite`, and
        occupancy: the true objects, [N, R, R, R], occupied above 0.5.
        latents: n to the latents [n, C, r, r, r] of the first n of them.
        decoder: latents [B, C, r, r, r] to logits [B, 1, R, R, R], occupied above 0.
        metric: pictures [B, H, W] to features [B, F]; None takes ``MetricEncoder``.

    Raises:
        FewstepError: for fewer than 2 objects, or arguments of different length.
    """

    headline = "frechet"
    lower_is_better = frozenset(
        {"chamfer", "frechet", "frechet_infinity", "kid", "empty", "other_frechet", "teacher_frechet"}
    )
    charts = ("other_frechet", "agree_iou")
    nearness = "iou"
    rule = "their overlap (IoU) with the true object, mean over all rows"
    signed = frozenset({"frechet_infinity", "kid", "agree_latent"})
    titles: Mapping[str, str] = {
        "frechet": "Fréchet distance of views",
        "frechet_infinity": "Fréchet distance of views, extrapolated",
        "other_frechet": "Fréchet distance to the teacher's views, other noise",
        "teacher_frechet": "Fréchet distance to the teacher's views, same noise",
        "agree_iou": "overlap with the teacher's shapes (IoU)",
    }
    legend = LEGEND

    def __init__(
        self,
        occupancy: Tensor,
        latents: Callable[[int], Tensor],
        tokens: Tensor,
        pictures: Sequence[Picture],
        decoder: nn.Module,
        *,
        encoder: ImageEncoder | None = None,
        metric: MetricNet | None = None,
        azimuths: Sequence[float] | None = None,
    ) -> None:
        super().__init__(tokens, pictures, encoder, azimuths)
        self.truth, self.decoder, self.views = occupancy > 0.5, decoder, ViewEncoder(metric)
        self._latents, self._x0 = latents, torch.zeros(0)
        self.check_lengths(occupancy)
        self._features = torch.zeros(0)

    @classmethod
    def of(cls, data: PreparedObjects, decoder: nn.Module) -> StructureSuite:
        """The held-out objects of a prepared set."""
        found = HeldOut.of(data.set)
        grids = data.set.occupancy(found.rows)
        return cls(
            grids[:, 0],
            lambda count: encode(data.encoder, grids[:count]),
            found.tokens,
            found.pictures,
            decoder,
            encoder=found.encoder,
            azimuths=found.azimuths,
        )

    def prompts(self, limit: int | None = None) -> Batch:
        tokens = self.tokens[:limit]
        return self.pictured(Batch(self.x0(len(tokens)), Dense(len(tokens)), Condition(tokens)))

    def prompt_from(self, image: Path, background: str = "remove") -> Batch:
        if self.encoder is None:
            return super().prompt_from(image, background)
        picture = preprocess(load_picture(image), str(image), background=cast(Background, background))
        tokens = self.encoder.encode([picture]).to(self.tokens)
        return Pictured(
            torch.zeros_like(self.x0(1)), Dense(1), Condition(tokens), torch.from_numpy(np.array(picture))[None]
        )

    def x0(self, count: int) -> Tensor:
        """Latents [count, C, r, r, r] of the first objects; encoded once."""
        if len(self._x0) < count:
            self._x0 = self._latents(count)
        return self._x0[:count]

    def record(self, objects: Any, teacher_objects: Any) -> Record:
        shapes, teacher = Shapes.check(objects), Shapes.check(teacher_objects)
        truth = self.truth[: len(shapes.grids)]
        own, same = (latents.flatten(1).double() for latents in (shapes.latents, teacher.latents))
        return {
            "features": shapes.features,
            "iou": volume_iou(shapes.grids, truth),
            "chamfer": chamfer(shapes.grids, truth),
            "empty": ~shapes.grids.flatten(1).any(1),
            "agree_iou": volume_iou(shapes.grids, teacher.grids),
            "latent_error": (own - same).square().sum(1),
            "latent_spread": (same - same.mean(0)).square().sum(1),
        }

    def score(self, record: Record, teacher: Record, other: Record | None, counts: Tensor) -> dict[str, Tensor]:
        features = record["features"]
        error, spread = (mean_resampled(record[name], counts) for name in ("latent_error", "latent_spread"))
        return {
            **distances(features, self._true_features(len(features)), counts),
            **described("iou", record["iou"], counts),
            **described("chamfer", record["chamfer"], counts),
            "empty": mean_resampled(record["empty"], counts),
            **teacher_distances(features, teacher, other, counts),
            **described("agree_iou", record["agree_iou"], counts),
            "agree_latent": 1 - error / spread,
        }

    def _true_features(self, count: int) -> Tensor:
        """[count, V, F], computed once."""
        if len(self._features) < count:
            self._features = self.views(self.truth[:count])
        return self._features[:count]

    def closeness(self, objects: Any) -> Tensor:
        grids = Shapes.check(objects).grids
        return volume_iou(grids, self.truth[: len(grids)])

    def meshes(self, objects: Any, chosen: Sequence[int]) -> list[Mesh]:
        return [voxel_mesh(Shapes.check(objects).grids[one]) for one in chosen]

    def truth_row(self, chosen: Sequence[int]) -> SheetRow:
        return SheetRow("true object", [voxel_mesh(self.truth[one]) for one in chosen])
