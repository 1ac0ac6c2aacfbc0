"""Data sets of both stages in TRELLIS's own layout."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fewstep.core.backbone import Backbone
from fewstep.core.batch import Batch
from fewstep.core.dataset import Dataset
from fewstep.core.layout import Dense
from fewstep.errors import FewstepError, invalid
from fewstep_trellis.normalisation import Normalisation
from fewstep_trellis.official.condition import Draw
from fewstep_trellis.official.config import LatentsConfig, OfficialConfig, StructureConfig
from fewstep_trellis.official.encode import conditions
from fewstep_trellis.official.failures import Failures
from fewstep_trellis.official.files import ItemError
from fewstep_trellis.official.items import Item, check_voxels, packed, read_item
from fewstep_trellis.official.network import arguments_of
from fewstep_trellis.official.published import published_pass
from fewstep_trellis.official.selection import nonempty, select
from fewstep_trellis.official.table import check_roots


class OfficialDataset(Dataset):
    """Latents and conditions of the objects in ``roots`` that pass the filters: what both stages share.

    Every random draw of a sample comes from a seed that the batch's generator drew for it, so that several threads may
    read files. An object that cannot be read is replaced by ``Failures.stand_in``.

    Raises:
        FewstepError: for roots without usable objects, or data that do not fit the backbone.
    """

    layout: str  # what a backbone must provide: "dense" or "packed"

    def __init__(self, config: OfficialConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.check_config(config)
        if self.layout not in backbone.provides:
            raise FewstepError(f"{type(self).__name__} is {self.layout}, which {type(backbone).__name__} cannot take")
        self.normalisation = self._normalisation()
        self.selection = nonempty(select(config.roots, config.filters()))
        self.failures = Failures(len(self), config.max_failures)
        self._said = list(self.selection.lines())
        self.conditions = conditions(config, backbone)
        self._check(self.read(0, 0).latents)

    @classmethod
    def check_config(cls, config: Any) -> None:
        check_roots(config.roots)

    def _normalisation(self) -> Normalisation | None:
        found: Normalisation | None = self.config.normalisation
        return found

    def _check(self, latents: Tensor) -> None:
        """Hold the first object's latents against the network: it would fail later, and less clearly."""
        arguments = arguments_of(self.backbone)
        for key, got in self._shape(latents).items():
            if arguments.get(key, got) != got:
                text = f"latents with {key} {got}; the teacher has {key} {arguments[key]}"
                raise FewstepError(f"data.latent_model={self.config.latent_model}: {text}")

    @abstractmethod
    def _shape(self, latents: Tensor) -> dict[str, int]:
        """What latents say of the network's constructor arguments."""

    def __len__(self) -> int:
        return len(self.selection.rows)

    def notes(self) -> list[str]:
        said, self._said = self._said, []
        return said + self.failures.notes()

    def indices(self, step: int, size: int, seed: int, rank: int = 0, ranks: int = 1) -> list[int]:
        if self.config.order == "published":
            return published_pass(len(self), self.loads(), step, size, seed, rank, ranks)
        return super().indices(step, size, seed, rank, ranks)

    def batch(self, indices: list[int], generator: torch.Generator) -> Batch:
        """These samples, or what stands in for them, each under a random one of its views or captions.

        Raises:
            FewstepError: for more unreadable objects than ``max_failures``.
        """
        seeds = torch.randint(2**62, (len(indices),), generator=generator).tolist()
        with ThreadPoolExecutor(self.config.workers) as pool:
            return self.collate(list(pool.map(self.read, indices, seeds)))

    def read(self, index: int, seed: int) -> Item:
        """The item of a sample or, where it cannot be read, of what stands in for it."""
        wanted = index
        while True:
            if index not in self.failures.reasons:
                try:
                    return self.conditions.load(self.item(index, seeded(seed)))
                except ItemError as error:
                    self.failures.add(index, error)
            index = self.failures.stand_in(wanted, self.loads())

    def item(self, index: int, draw: Draw) -> Item:
        """The item of exactly this sample. Raises ItemError."""
        return read_item(self.selection.rows[index], self.config, self.normalisation, draw)

    @abstractmethod
    def collate(self, items: Sequence[Item]) -> Batch:
        """A batch of these items."""


class StructureLatents(OfficialDataset):
    """Structure latents [B, C, r, r, r]."""

    Config = StructureConfig
    layout = "dense"

    def _shape(self, latents: Tensor) -> dict[str, int]:
        return {"in_channels": latents.shape[0], "resolution": latents.shape[1]}

    def collate(self, items: Sequence[Item]) -> Batch:
        latents = torch.stack([item.latents for item in items])
        return Batch(latents, Dense(len(items)), self.conditions.encode(items))


class StructuredLatents(OfficialDataset):
    """Structured latents [T, C], ``Packed`` with their voxels; normalised as the teacher's unless told otherwise."""

    Config = LatentsConfig
    layout = "packed"

    def _normalisation(self) -> Normalisation | None:
        if self.config.normalisation == "stored":
            return None
        if isinstance(self.config.normalisation, Normalisation):
            return self.config.normalisation
        found: Normalisation | None = getattr(self.backbone, "normalisation", None)
        if found is None:
            text = "stored, or mean and std: the teacher has none, and no pipeline.json lies beside it"
            raise invalid("data.normalisation", "teacher", text)
        return found

    def _shape(self, latents: Tensor) -> dict[str, int]:
        return {"in_channels": latents.shape[1]}

    def item(self, index: int, draw: Draw) -> Item:
        found = super().item(index, draw)
        most = self.loads()[index] if self.config.voxel_budget is not None else None
        check_voxels(self.selection.rows[index], found, arguments_of(self.backbone).get("resolution"), most)
        return found

    @cached_property
    def _voxels(self) -> list[int]:
        return [int(row.number("num_voxels") or 0) for row in self.selection.rows]

    def loads(self) -> Sequence[int]:
        """``num_voxels`` of every object's row."""
        return self._voxels

    def collate(self, items: Sequence[Item]) -> Batch:
        layout = packed([item.coords for item in items if item.coords is not None])
        return Batch(torch.cat([item.latents for item in items]), layout, self.conditions.encode(items))


def seeded(seed: int) -> Draw:
    """Draws from a generator with this seed."""
    draws = torch.Generator().manual_seed(seed)
    return lambda count: int(torch.randint(count, (1,), generator=draws))
