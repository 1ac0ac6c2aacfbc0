"""Draws of the smoothed images, with their digit as condition."""

from __future__ import annotations

import zlib
from functools import cached_property

import torch
from torch import Tensor

from fewstep.core.backbone import Backbone
from fewstep.core.batch import Batch, Condition
from fewstep.core.dataset import Dataset
from fewstep.core.layout import Dense
from fewstep_images.config import ImagesConfig, ImagesDataConfig
from fewstep_images.sources import CLASSES, smoothed


class SmoothedImages(Dataset):
    """x0 [B, P] = image + smoothing * noise; the condition is a one-hot digit [B, 10].

    The distribution is known, so validation and test need no separate images: they are draws with other noise.
    """

    Config = ImagesDataConfig

    def __init__(self, config: ImagesDataConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        found = getattr(backbone, "config", None)
        self.images = found if isinstance(found, ImagesConfig) else ImagesConfig()
        self.mixture = smoothed(self.images)

    def __len__(self) -> int:
        return len(self.mixture.means)

    def batch(self, indices: list[int], generator: torch.Generator) -> Batch:
        """These images, each with fresh noise."""
        means, rows = self.mixture.means, torch.tensor(indices)
        noise = torch.randn(len(rows), means.shape[1], generator=generator, dtype=means.dtype)
        return self._batch(means[rows] + self.mixture.std * noise, self.mixture.classes[rows])

    def held_out(self, limit: int | None = None) -> Batch:
        """Draws of all digits, in proportion to their images, in a fixed shuffled order."""
        return self._batch(self._held_out[0][:limit], self.held_out_labels(limit))

    def held_out_labels(self, limit: int | None = None) -> Tensor:
        """[N] the digits of the held-out draws."""
        return self._held_out[1][:limit]

    @cached_property
    def _held_out(self) -> tuple[Tensor, Tensor]:
        count, key = self.config.prompts, f"{self.config.held_out}/{self.config.seed}"
        draws = torch.Generator().manual_seed(zlib.crc32(key.encode()))
        spread = ((torch.arange(count) + 0.5) * len(self) / count).long()
        labels = self.mixture.classes.sort().values[spread][torch.randperm(count, generator=draws)]
        return self.mixture.sample(labels, draws), labels

    def _batch(self, x0: Tensor, labels: Tensor) -> Batch:
        if not self.images.conditional:
            return Batch(x0, Dense(len(x0)))
        one_hot = torch.nn.functional.one_hot(labels, CLASSES).to(x0.dtype)
        return Batch(x0, Dense(len(x0)), Condition(one_hot))
