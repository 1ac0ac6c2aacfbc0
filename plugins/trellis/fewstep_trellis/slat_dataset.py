"""Prepared objects as a data set of the second stage: latents on occupied voxels with image tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from fewstep_shapes3d.data import SWEETHOME3D
from fewstep_shapes3d.data.joined import Folders, load_sets
from fewstep_shapes3d.data.prepared import HeldOutSplit
from fewstep_shapes3d.data.reading import read_manifest
from pydantic import Field
from torch import Tensor

from fewstep.core.backbone import Backbone
from fewstep.core.batch import Batch, Condition
from fewstep.core.dataset import Dataset, PackedDataConfig, Progress, silent
from fewstep.core.layout import Packed
from fewstep_trellis.flow import check_checkpoint, load_frozen
from fewstep_trellis.latents import encode_surfaces, surface_latents
from fewstep_trellis.models import SLatEncoder
from fewstep_trellis.normalisation import Normalisation
from fewstep_trellis.official.network import check_width
from fewstep_trellis.shipped import NANO


class PreparedLatentsConfig(PackedDataConfig):
    """Which prepared set, the encoder that makes its latents, and how many voxels go into a pass."""

    root: Folders = Field((SWEETHOME3D,), description="folders of `fewstep data prepare`, joined by commas")
    held_out: HeldOutSplit = Field("test", description="split to measure on: validation to choose, test to report")
    encoder: Path = Field(NANO / "slat_encoder", description="SLat-encoder checkpoint")
    normalisation: Normalisation | None = Field(
        None, description="mean and std of the latents; none: those of pipeline.json beside the encoder or above it"
    )
    mirror: bool = Field(True, description="train on mirror images of objects and pictures too")
    crop: int | None = Field(
        None, ge=1, description="train on a random cube of at most this many voxels of each object; none: whole objects"
    )


class PreparedLatents(Dataset):
    """Normalised latents [T, C] on the voxels of the set's objects (``Packed`` with coords) and tokens [L, Cc].

    Training sample i is object i // 2 for an even i, its mirror image for an odd one (with ``mirror``).
    """

    Config = PreparedLatentsConfig

    @classmethod
    def check_config(cls, config: Any) -> None:
        for folder in config.root:
            read_manifest(folder)
        check_checkpoint(SLatEncoder, "data.encoder", config.encoder)

    def __init__(self, config: PreparedLatentsConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.set = load_sets(config.root, config.held_out)
        check_width("data.root", str(config.root[0]), self.set.channels, backbone)
        self.encoder: SLatEncoder = load_frozen(SLatEncoder, "data.encoder", config.encoder)
        self.normalisation = config.normalisation or Normalisation.beside(config.encoder)
        self._flips = 2 if config.mirror else 1
        self._notes = list(self.set.left_out)

    def notes(self) -> list[str]:
        said, self._notes = self._notes, []
        return said

    def prepare(self, device: torch.device, progress: Progress = silent) -> None:
        """Encode the training objects on ``device``, or read their latents from the cache."""
        self.encoder.to(device)
        self.latents = self._latents(progress)

    @cached_property
    def latents(self) -> list[Tensor]:
        """[T, C] of every training sample; made on first use, since a bench never asks for them."""
        return self._latents()

    def _latents(self, progress: Progress = silent) -> list[Tensor]:
        found = surface_latents(
            self.set, self.encoder, mirror=self.config.mirror, progress=progress, say=self._notes.append
        )
        return [self._scaled(z) for z in found]

    @cached_property
    def _counts(self) -> list[int]:
        voxels = self.set.occupancy(self.set.train).sum((1, 2, 3, 4)).long().tolist()
        most = self.config.crop or max(voxels, default=0)
        return [min(count, most) for count in voxels for _ in range(self._flips)]

    def __len__(self) -> int:
        return len(self.set.train) * self._flips

    def loads(self) -> Sequence[int]:
        """Voxels of every training sample, at most."""
        return self._counts

    def batch(self, indices: list[int], generator: torch.Generator) -> Batch:
        """Latents of these samples, each under a random one of its views."""
        views = torch.randint(self.set.views, (len(indices),), generator=generator).tolist()
        chosen = [divmod(i, self._flips) for i in indices]
        rows = [(int(self.set.train[i]), bool(flip)) for i, flip in chosen]
        tokens = torch.cat([self.set.tokens([row], view, flip) for (row, flip), view in zip(rows, views, strict=True)])
        coords, latents = [self.set.voxels(row, flip) for row, flip in rows], [self.latents[i] for i in indices]
        if self.config.crop is not None:
            centres = [each[int(torch.randint(len(each), (), generator=generator))] for each in coords]
            inside = [cube_around(each, self.config.crop, centre) for each, centre in zip(coords, centres, strict=True)]
            coords = [each[kept] for each, kept in zip(coords, inside, strict=True)]
            latents = [each[kept] for each, kept in zip(latents, inside, strict=True)]
        return Batch(torch.cat(latents), packed(coords), Condition(tokens))

    def held_out(self) -> Batch:
        """Every held-out object in its first view."""
        rows = [int(row) for row in self.set.test]
        latents = encode_surfaces(self.encoder, [self.set.surface(row) for row in rows])
        layout = packed([self.set.voxels(row) for row in rows])
        return Batch(self._scaled(torch.cat(latents)), layout, Condition(self.set.tokens(rows, 0, False)))

    def _scaled(self, z: Tensor) -> Tensor:
        return z if self.normalisation is None else self.normalisation.apply(z)


def cube_around(coords: Tensor, count: int, centre: Tensor) -> Tensor:
    """Rows of ``coords`` [T, 3] in the largest cube around ``centre`` [3] that holds at most ``count`` of them."""
    away = (coords - centre).abs().amax(1)
    held = torch.bincount(away).cumsum(0)
    radius = int((held <= count).sum()) - 1
    return (away <= max(radius, 0)).nonzero()[:, 0]


def packed(coords: list[Tensor]) -> Packed:
    """The layout of objects with these voxels."""
    return Packed.of_lengths([len(each) for each in coords], torch.cat(coords).int())
