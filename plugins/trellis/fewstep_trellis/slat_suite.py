"""``fewstep bench`` on structured latents: coloured meshes against the true held-out objects and the teacher's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fewstep_shapes3d.export import turntable, write_glb
from fewstep_shapes3d.export.contact import Picture, contact_sheet
from fewstep_shapes3d.measures.features import ImageEncoder
from fewstep_shapes3d.measures.held_out import HeldOut, PictureSuite, shown
from fewstep_shapes3d.measures.shapes import MetricNet, ViewEncoder, distances, teacher_distances
from fewstep_shapes3d.measures.surfaces import (
    Cloud,
    Surfaces,
    cloud_distance,
    latent_errors,
    true_cloud,
    view_error,
)
from fewstep_shapes3d.representations import Mesh
from fewstep_shapes3d.sparse.noise import voxel_noise
from torch import Tensor

from fewstep.core.batch import Batch
from fewstep.core.layout import Layout, Packed
from fewstep.core.suite import Record, SheetRow, Suite
from fewstep.errors import FewstepError, invalid
from fewstep.files import file_suffix
from fewstep.metrics.resampled import described, mean_resampled
from fewstep_trellis.models import SLatMeshDecoder
from fewstep_trellis.normalisation import Normalisation
from fewstep_trellis.slat_dataset import PreparedLatents

TILE = 160  # pixels of a picture of a sample
LEGEND = {
    "frechet": "4 coloured views of each mesh against those of the mesh decoded from the true latents, all pooled, by "
    "EfficientNet-Lite2 (the condition comes from another network), on 32 principal components",
    "frechet_infinity": "frechet extrapolated to infinitely many objects, from all, half and a quarter of them",
    "kid": "the same features, the 4 views of an object joined; unbiased, each object's own partner left out",
    "precision, recall": "share of objects within the support of the true ones, and the reverse, by the "
    "distance to the third nearest neighbour in the joined features",
    "view_error": "mean absolute difference to the views of the true latents' mesh, where either shows something",
    "other_frechet": "frechet to the teacher's meshes from other noise; the teacher's own row is the floor",
    "teacher_frechet, teacher_view_error": "the same to the teacher's meshes from the same noise, which favours "
    "methods that preserve the teacher's map from noise to samples",
    "empty": "share of objects without any face",
    "chamfer, colour_error": "to one point in each voxel of the true surface: sides of the cube, and colours in [0, 1]",
    "agree_latent": "R squared of the latents with the teacher's own from the same noise, on the voxels that both have",
}


class SurfaceObjects(Suite):
    """Decoding of structured latents to meshes and writing of files, with or without measures. A subclass sets the
    attributes."""

    decoder: SLatMeshDecoder
    normalisation: Normalisation | None
    views: ViewEncoder
    device: torch.device
    suffixes: tuple[str, ...] = (".png",)
    azimuths: list[float]  # of the pictures' cameras in degrees, for the contact sheet

    def to(self, device: torch.device) -> None:
        super().to(device)
        self.device = device
        self.decoder.to(device)
        self.views.to(device)

    def noise(self, seed: int, batch: Batch) -> Tensor:
        """Noise by voxel position, so that students whose structures differ start alike on the voxels they share."""
        return voxel_noise(seed, batch.layout, batch.x0)

    def prompt_from(self, image: Path, background: str = "remove") -> Batch:
        raise FewstepError(
            f"--image {str(image)!r}: this stage needs a structure too; accepted: fewstep generate, which makes both"
        )

    @torch.inference_mode()
    def decode(self, x: Tensor, layout: Layout) -> Surfaces:
        """Meshes of latents [T, C], object by object; one without voxels is an empty mesh."""
        if not isinstance(layout, Packed):
            raise invalid("layout", type(layout).__name__, "Packed, with coords")
        z = x if self.normalisation is None else self.normalisation.undo(x)
        meshes = [self._mesh(*layout.select(z, torch.tensor([i]))) for i in range(layout.batch_size)]
        return Surfaces(meshes, x.cpu(), layout, self.azimuths, self.views.of_pictures)

    def _mesh(self, z: Tensor, layout: Packed) -> Mesh:
        if not len(z):
            return Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64))
        (mesh,) = self.decoder.decode(z.to(self.device), layout.to(self.device))
        return mesh.to("cpu")

    def write(self, objects: Any, path: Path, prompts: Batch | None = None) -> list[Path]:
        """Pictures and views of all meshes (``.png``); into a folder those and a ``.glb`` of each.

        Raises:
            FewstepError: for another suffix.
        """
        if (suffix := file_suffix(path)) not in ("", ".png"):
            raise invalid("--out", str(path), "a name ending in .png, or a folder")
        meshes = Surfaces.check(objects).meshes
        file = path if suffix else path / "samples.png"
        pairs = zip(shown(prompts, len(meshes)), meshes, strict=True)
        rows = [(f"{number}", [*seen, *turntable(mesh, 4, TILE)]) for number, (seen, mesh) in enumerate(pairs, 1)]
        contact_sheet(rows, file, TILE)
        named = [] if suffix else [(path / f"{number:03}.glb", mesh) for number, mesh in enumerate(meshes, 1)]
        return [file, *(write_glb(mesh, place) for place, mesh in named if mesh.success)]


class StructuredLatentSuite(SurfaceObjects, PictureSuite):
    """Held-out objects with their true structure, and what is measured on meshes of them.

    Args: those of :class:`PictureSuite`, and
        batch: true latents [T, C] as the flow has them, on their voxels, under their tokens.
        truth: the true coloured surfaces.
        decoder: latents to meshes.
        normalisation: between the flow's latents and the decoder's.
        metric: pictures [B, 3, H, W] to features [B, F]; None takes ``MetricEncoder``.

    Raises:
        FewstepError: for fewer than 2 objects, or arguments of different length.
    """

    headline = "frechet"
    lower_is_better = frozenset(
        {
            "frechet",
            "frechet_infinity",
            "kid",
            "view_error",
            "other_frechet",
            "teacher_frechet",
            "teacher_view_error",
            "chamfer",
            "colour_error",
            "empty",
        }
    )
    charts = ("other_frechet", "teacher_view_error")
    nearness = "view_error"
    rule = "their distance (Chamfer) to the true surface, mean over all rows"
    signed = frozenset({"frechet_infinity", "kid", "agree_latent"})
    titles: Mapping[str, str] = {
        "frechet": "Fréchet distance of views",
        "frechet_infinity": "Fréchet distance of views, extrapolated",
        "other_frechet": "Fréchet distance to the teacher's views, other noise",
        "teacher_frechet": "Fréchet distance to the teacher's views, same noise",
        "teacher_view_error": "difference to the teacher's views",
    }
    legend = LEGEND

    def __init__(
        self,
        batch: Batch,
        truth: Sequence[Cloud],
        pictures: Sequence[Picture],
        decoder: SLatMeshDecoder,
        normalisation: Normalisation | None = None,
        *,
        encoder: ImageEncoder | None = None,
        metric: MetricNet | None = None,
        azimuths: Sequence[float] | None = None,
    ) -> None:
        if batch.cond.tokens is None:
            raise FewstepError("objects without image tokens cannot be measured")
        super().__init__(batch.cond.tokens, pictures, encoder, azimuths)
        self.batch, self.truth, self.decoder, self.normalisation = batch, list(truth), decoder, normalisation
        self.views = ViewEncoder(metric)
        self.check_lengths(self.truth, batch.cond.tokens[: batch.layout.batch_size])
        self._true: Surfaces | None = None

    @classmethod
    def of(
        cls, dataset: PreparedLatents, decoder: SLatMeshDecoder, normalisation: Normalisation | None
    ) -> StructuredLatentSuite:
        """The held-out objects of a prepared set, in the order of the first stage's suite."""
        data, found = dataset.set, HeldOut.of(dataset.set)
        return cls(
            dataset.held_out().select(found.order),
            [true_cloud(*data.surface(row), data.resolution) for row in found.rows],
            found.pictures,
            decoder,
            normalisation,
            encoder=found.encoder,
            azimuths=found.azimuths,
        )

    def prompts(self, limit: int | None = None) -> Batch:
        count = len(self.pictures) if limit is None else min(limit, len(self.pictures))
        return self.pictured(self.batch.select(torch.arange(count)))

    def record(self, objects: Any, teacher_objects: Any) -> Record:
        own, teacher = Surfaces.check(objects), Surfaces.check(teacher_objects)
        views, truth = own.seen.views, self._decoded_truth(own.layout.batch_size)
        pairs = [cloud_distance(one, true) for one, true in zip(own.seen.clouds, self.truth, strict=False)]
        chamfer, colour = torch.tensor(pairs, dtype=torch.float64).T
        error, spread = latent_errors(own, teacher)
        return {
            "features": own.features,
            "view_error": view_error(views, truth.seen.views[: len(views)]),
            "chamfer": chamfer,
            "colour_error": colour,
            "empty": torch.tensor([not len(cloud.points) for cloud in own.seen.clouds]),
            "teacher_view_error": view_error(views, teacher.seen.views),
            "latent_error": error,
            "latent_spread": spread,
        }

    def score(self, record: Record, teacher: Record, other: Record | None, counts: Tensor) -> dict[str, Tensor]:
        features = record["features"]
        truth = self._decoded_truth(len(features)).features[: len(features)]
        error, spread = (mean_resampled(record[name], counts) for name in ("latent_error", "latent_spread"))
        return {
            **distances(features, truth, counts),
            **described("view_error", record["view_error"], counts),
            **described("chamfer", record["chamfer"], counts),
            **described("colour_error", record["colour_error"], counts),
            "empty": mean_resampled(record["empty"], counts),
            **teacher_distances(features, teacher, other, counts),
            **described("teacher_view_error", record["teacher_view_error"], counts),
            "agree_latent": torch.where(spread > 0, 1 - error / spread, 0.0),
        }

    def _decoded_truth(self, count: int) -> Surfaces:
        """The meshes of (at least) the first ``count`` objects' true latents, made once."""
        if self._true is None or self._true.layout.batch_size < count:
            batch = self.prompts(count)
            self._true = self.decode(batch.x0, batch.layout)
        return self._true

    def closeness(self, objects: Any) -> Tensor:
        """Of the first objects, those that are drawn."""
        seen = Surfaces.check(objects).seen
        pairs = zip(seen.clouds[: len(seen.meshes)], self.truth, strict=False)
        return torch.tensor([-cloud_distance(cloud, true)[0] for cloud, true in pairs])

    def meshes(self, objects: Any, chosen: Sequence[int]) -> list[Mesh]:
        return [Surfaces.check(objects).seen.meshes[one] for one in chosen]

    def truth_row(self, chosen: Sequence[int]) -> SheetRow:
        truth = self.meshes(self._decoded_truth(max(chosen) + 1), chosen)
        return SheetRow("true latents", truth, ("decoded to a mesh",))
