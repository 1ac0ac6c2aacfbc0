"""Prepared objects as a data set: structure latents with image tokens."""

from __future__ import annotations

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

from fewstep.config.base import Strict
from fewstep.core.backbone import Backbone
from fewstep.core.batch import Batch, Condition
from fewstep.core.dataset import Dataset, Progress, silent
from fewstep.core.layout import Dense
from fewstep_trellis.flow import check_checkpoint, load_frozen
from fewstep_trellis.latents import encode, training_latents
from fewstep_trellis.models import SparseStructureEncoder
from fewstep_trellis.official.network import check_width
from fewstep_trellis.shipped import NANO


class PreparedConfig(Strict):
    """Which prepared set, and the encoder that makes its latents."""

    root: Folders = Field((SWEETHOME3D,), description="folders of `fewstep data prepare`, joined by commas")
    held_out: HeldOutSplit = Field("test", description="split to measure on: validation to choose, test to report")
    encoder: Path = Field(NANO / "ss_encoder", description="structure-encoder checkpoint")
    mirror: bool = Field(True, description="train on mirror images of objects and pictures too")


class PreparedObjects(Dataset):
    """Latents [C, r, r, r] of the set's objects and tokens [L, Cc] of their views.

    Training sample i is object i // 2 for an even i, its mirror image for an odd one (with ``mirror``).
    """

    Config = PreparedConfig

    @classmethod
    def check_config(cls, config: Any) -> None:
        for folder in config.root:
            read_manifest(folder)
        check_checkpoint(SparseStructureEncoder, "data.encoder", config.encoder)

    def __init__(self, config: PreparedConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.set = load_sets(config.root, config.held_out)
        check_width("data.root", str(config.root[0]), self.set.channels, backbone)
        self.encoder = load_encoder(config.encoder)
        self._notes = list(self.set.left_out)

    def prepare(self, device: torch.device, progress: Progress = silent) -> None:
        """Encode the training objects on ``device``, or read their latents from the cache."""
        self.latents = training_latents(
            self.set, self.encoder.to(device), mirror=self.config.mirror, progress=progress, say=self._notes.append
        )

    def notes(self) -> list[str]:
        said, self._notes = self._notes, []
        return said

    @cached_property
    def latents(self) -> Tensor:
        """[objects, 1 or 2, C, r, r, r]; made on first use, since a bench never asks for them."""
        return training_latents(self.set, self.encoder, mirror=self.config.mirror)

    def __len__(self) -> int:
        return len(self.set.train) * (2 if self.config.mirror else 1)

    def batch(self, indices: list[int], generator: torch.Generator) -> Batch:
        """Latents of these samples, each under a random one of its views."""
        objects, flips = zip(*(divmod(i, self.latents.shape[1]) for i in indices), strict=True)
        views = torch.randint(self.set.views, (len(indices),), generator=generator).tolist()
        rows = [int(self.set.train[i]) for i in objects]
        tokens = torch.cat([self.set.tokens([r], v, bool(f)) for r, v, f in zip(rows, views, flips, strict=True)])
        return Batch(self.latents[list(objects), list(flips)], Dense(len(indices)), Condition(tokens))

    def held_out(self) -> Batch:
        """Every held-out object in its first view."""
        rows = self.set.test
        return Batch(
            encode(self.encoder, self.set.occupancy(rows)), Dense(len(rows)), Condition(self.set.tokens(rows, 0, False))
        )


def load_encoder(path: Path) -> SparseStructureEncoder:
    """The encoder from occupancy to latents, frozen.

    Raises:
        FewstepError: for a missing checkpoint or one of another class.
    """
    model = load_frozen(SparseStructureEncoder, "data.encoder", path)
    # Channels last: on a CPU, convolutions and norms over channels take half the time.
    model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return model
