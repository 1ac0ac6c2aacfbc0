"""The evaluation of images: distance to the exact distribution and to the exact flow map, and a sheet of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.core.backbone import Teacher
from fewstep.core.batch import Batch
from fewstep.core.guidance import Guidance
from fewstep.core.layout import Layout
from fewstep.core.objective import Step
from fewstep.core.samplers import heun
from fewstep.core.suite import Record, Rows, SheetRow, Suite
from fewstep.core.times import step_grid
from fewstep.errors import need
from fewstep.files import file_suffix, new_file
from fewstep.metrics.resampled import (
    described,
    extrapolated,
    frechet_gaussian_resampled,
    frechet_resampled,
    kid_resampled,
    mean_resampled,
    precision_recall_resampled,
)
from fewstep.words import chart_escaped, shortened
from fewstep_images.dataset import SmoothedImages
from fewstep_images.exact import ExactFlow
from fewstep_images.sources import SIDES

COMPONENTS = 64  # principal components: all of 8 x 8 pixels, the leading ones of 28 x 28
EXACT_STEPS, WARP = 50, 0.5  # of Heun's method: its error is below 0.001
CHUNK = 512  # samples per call, each a row of a softmax over all images
COLUMNS, LABEL = 10, 40  # images per line of written samples, characters of a label
IMAGE = 0.72  # inches


@dataclass(frozen=True)
class Decoded:
    """Images [N, P], and the seed of the noise that the suite last handed out, from which they were made."""

    images: Tensor
    seed: int | None = None


class ImageSuite(Suite):
    """Images need no decoding. Mean and covariance of the truth are exact; so is the map from noise to image, up to the
    error of the ODE solver (``EXACT_STEPS`` of Heun)."""

    headline = "frechet"
    lower_is_better = frozenset(
        {
            "frechet",
            "frechet_infinity",
            "kid",
            "other_frechet",
            "teacher_frechet",
            "teacher_rms",
            "map_rms",
            "wrong_class",
        }
    )
    signed = frozenset({"frechet_infinity", "kid"})
    charts = ("map_rms",)
    nearness = "map_rms"
    titles: Mapping[str, str] = {
        "frechet": "Fréchet distance of pixels",
        "frechet_infinity": "Fréchet distance of pixels, extrapolated",
        "map_rms": "distance to the exact map",
    }
    legend: Mapping[str, str] = {
        "frechet": f"Fréchet distance to the exact mean and covariance of pixels, on {COMPONENTS} leading components",
        "frechet_infinity": "frechet extrapolated to infinitely many images, from all, half and a quarter of them",
        "kid": "the same components, against draws of the exact distribution; unbiased, the draw of an image's own "
        "prompt left out",
        "precision, recall": "share of images within the support of those draws, and the reverse, by the distance "
        "to the third nearest neighbour",
        "other_frechet": "frechet to the teacher's samples from other noise; the teacher's own row is the floor",
        "teacher_frechet": "the same distance to the teacher's own samples from the same noise",
        "teacher_rms": "root mean square distance of a pixel to the teacher's own image from the same noise",
        "map_rms": "the same to the image that the exact flow makes of that noise; median and tails over the images",
        "wrong_class": "share of images that most probably belong to another class than asked for",
    }

    def __init__(self, dataset: SmoothedImages) -> None:
        self.dataset, self.device = dataset, torch.device("cpu")
        self.seed: int | None = None
        config, means = dataset.images, dataset.mixture.means.double()
        self.side, self.exact = SIDES[config.source], Teacher(ExactFlow(config), Guidance(config.guidance))
        values, axes = torch.linalg.eigh(means.T.cov(correction=0))
        self.axes, self.mean = axes[:, -COMPONENTS:], means.mean(0)
        self.cov = torch.diag(values[-COMPONENTS:] + config.smoothing**2)
        self._maps: dict[tuple[int, int], Tensor] = {}

    def to(self, device: torch.device) -> None:
        self.device = device

    def prompts(self, limit: int | None = None) -> Batch:
        return self.dataset.held_out(limit)

    def noise(self, seed: int, batch: Batch) -> Tensor:
        """Validation and test have noise of their own."""
        self.seed = seed
        step = Step(index=0, interpolant=self.exact.interpolant, seed=seed)
        return step.randn_like(batch.x0, f"noise/{self.dataset.config.held_out}")

    def decode(self, x: Tensor, layout: Layout) -> Decoded:
        return Decoded(x.detach().float().cpu(), self.seed)

    def exact_map(self, seed: int, count: int) -> Tensor:
        """[N, P] where the exact flow, with the teacher's guidance, carries the noise of a seed."""
        if (seed, count) not in self._maps:
            batch = self.prompts(count)
            noise, step = self.noise(seed, batch), Step(index=0, interpolant=self.exact.interpolant)
            self.exact.to(self.device)
            grid, parts = step_grid(EXACT_STEPS, WARP), []
            for rows in torch.arange(count).split(CHUNK):
                part = batch.select(rows).to(self.device)
                parts.append(heun(self.exact, noise[rows].to(self.device), part.cond, part.layout, grid, step).cpu())
            self._maps[seed, count] = torch.cat(parts)
        return self._maps[seed, count]

    def record(self, objects: Any, teacher_objects: Any) -> Record:
        images, teacher = objects.images, teacher_objects.images
        found = {"features": self._components(images), "teacher_rms": _rms(images - teacher)}
        if teacher_objects.seed is not None:
            found["map_rms"] = _rms(images - self.exact_map(teacher_objects.seed, len(teacher)))
        if self.dataset.images.conditional:
            labels = self.dataset.held_out_labels(len(images))
            found["wrong_class"] = self.dataset.mixture.most_probable(images) != labels
        return found

    def score(self, record: Record, teacher: Record, other: Record | None, counts: Tensor) -> dict[str, Tensor]:
        features = record["features"]
        draws = self._components(self.prompts(len(features)).x0)
        precision, recall = precision_recall_resampled(features, draws, counts)
        found = {"frechet": self._frechet(features, counts)}
        if len(features) > 4 * COMPONENTS:  # a quarter still fills a covariance
            found["frechet_infinity"] = extrapolated(lambda rows, drawn: self._frechet(features[rows], drawn), counts)
        found |= {"kid": kid_resampled(features, draws, counts), "precision": precision, "recall": recall}
        for name, reference in {"other_frechet": other, "teacher_frechet": teacher}.items():
            if reference is not None:
                pair = features[:, None], reference["features"][:, None]
                found[name] = frechet_resampled(*pair, counts, COMPONENTS)
        found["teacher_rms"] = mean_resampled(record["teacher_rms"].square(), counts).sqrt()
        if "map_rms" in record:
            found |= described("map_rms", record["map_rms"], counts)
            found["map_rms"] = mean_resampled(record["map_rms"].square(), counts).sqrt()
        if "wrong_class" in record:
            found["wrong_class"] = mean_resampled(record["wrong_class"], counts)
        return found

    def _components(self, images: Tensor) -> Tensor:
        """[N, C] of images [N, P]."""
        found: Tensor = (images.double() - self.mean) @ self.axes
        return found.float()

    def _frechet(self, features: Tensor, counts: Tensor) -> Tensor:
        return frechet_gaussian_resampled(features, torch.zeros(len(self.cov)), self.cov, counts)

    def sheet(self, rows: Rows, path: Path, count: int) -> None:
        """One line of images per row, below a line of draws from the exact distribution."""
        truth = SheetRow("exact distribution", Decoded(self.prompts(count).x0))
        self._draw([truth, *SheetRow.of(rows)], path, count)

    def write(self, objects: Any, path: Path, prompts: Batch | None = None) -> list[Path]:
        """Write all images, ``COLUMNS`` per line."""
        file = path if file_suffix(path) else path / "samples.png"
        lines = [SheetRow("", Decoded(part)) for part in objects.images.split(COLUMNS)]
        with new_file(file) as temp:
            self._draw(lines, temp, min(COLUMNS, len(objects.images)))
        return [file]

    def _draw(self, rows: list[SheetRow], path: Path, columns: int) -> None:
        need("matplotlib")
        from fewstep.benchmark.chart import drawing

        labels = ["\n".join(shortened(line, LABEL) for line in (row.label, *row.notes)) for row in rows]
        margin = 2.3 if any(labels) else 0.0
        with drawing(path, margin + IMAGE * columns, IMAGE * len(rows), dpi=140) as figure:
            panels = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
            for axes, row, label in zip(panels, rows, labels, strict=True):
                axes.imshow(self._line(row.objects.images[:columns], columns), cmap="gray_r", vmin=-1, vmax=1)
                axes.set(xticks=[], yticks=[])
                axes.set_anchor("E")  # the width left of the axes is for the labels
                axes.spines[:].set_visible(False)
                axes.set_ylabel(chart_escaped(label), rotation=0, ha="right", va="center", fontsize=8)

    def _line(self, images: Tensor, columns: int) -> Any:
        """Images side by side on white, one pixel apart."""
        line = torch.full((self.side, columns * (self.side + 1) - 1), -1.0)
        for i, image in enumerate(images):
            line[:, i * (self.side + 1) : i * (self.side + 1) + self.side] = image.reshape(self.side, self.side)
        return line.numpy()


def _rms(difference: Tensor) -> Tensor:
    """[N] the root mean square over the pixels of [N, P]."""
    return difference.square().mean(1).sqrt()
