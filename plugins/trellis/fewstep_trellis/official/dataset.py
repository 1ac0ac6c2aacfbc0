"""Data sets of both stages in TRELLIS's own layout."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL.Image import Image

from fewstep.core.backbone import Backbone
from fewstep.core.batch import Batch, Condition
from fewstep.core.dataset import Dataset
from fewstep.core.layout import Dense
from fewstep.errors import FewstepError, invalid
from fewstep_trellis.normalisation import Normalisation
from fewstep_trellis.official.condition import Draw
from fewstep_trellis.official.config import LatentsConfig, ObjectsConfig, StructureConfig
from fewstep_trellis.official.encode import Conditions, conditions
from fewstep_trellis.official.failures import Failures
from fewstep_trellis.official.files import ItemError
from fewstep_trellis.official.fits import Fits
from fewstep_trellis.official.items import Item, packed, read_item
from fewstep_trellis.official.published import published_pass
from fewstep_trellis.official.selection import Selection, nonempty, select
from fewstep_trellis.official.table import Row, check_roots


class OfficialDataset(Dataset):
    """Latents and conditions of the objects in ``roots`` that pass the filters: what both stages share.

    Every random draw of a sample comes from a seed that the batch's generator drew for it, so that several threads may
    read files. An object that cannot be used is replaced by ``Failures.stand_in``.

    Raises:
        FewstepError: for roots without usable objects, or data that do not fit the backbone.
    """

    reads_ahead = True
    layout: str  # what a backbone must provide: "dense" or "packed"

    def __init__(self, config: ObjectsConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.check_config(config)
        if self.layout not in backbone.provides:
            raise FewstepError(f"{type(self).__name__} is {self.layout}, which {type(backbone).__name__} cannot take")
        self.normalisation, self.fits = self._normalisation(), self._fits()
        if self.normalisation is not None:
            self.fits = self.fits.normalised(self.normalisation)
        self.selection = nonempty(self._selected())
        self.failures = Failures(len(self), config.max_failures)
        self._said = list(self.selection.lines())
        self.conditions = self._conditions()
        self.fits = self.fits.like(self.read(0, 0).latents)

    @classmethod
    def check_config(cls, config: Any) -> None:
        check_roots(config.roots)

    def _selected(self) -> Selection:
        return select(self.config.roots, self.config.filters())

    def _fits(self) -> Fits:
        return Fits.of(self.backbone)

    def _conditions(self) -> Conditions:
        return conditions(self.config, self.backbone)

    def _item(self, row: Row, draw: Draw) -> Item:
        return read_item(row, self.config, self.normalisation, draw, self.fits)

    def _check_there(self, row: Row) -> None:
        """Raise FewstepError if the row's whole root is gone: then it is not the object's fault."""
        check_roots([row.root])

    def _normalisation(self) -> Normalisation | None:
        found: Normalisation | None = self.config.normalisation
        return found

    def __len__(self) -> int:
        return len(self.selection.rows)

    def condition_of(self, picture: Path, background: str) -> tuple[Condition, Image]:
        """The condition of a picture file, and the picture, cut out and resized as in training.

        Raises:
            FewstepError: for a file that is not a picture of an object, or a data set of texts.
        """
        return self.conditions.of(picture, background)

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
            FewstepError: for more unusable objects than ``max_failures``.
        """
        return self.collate(self.items(indices, generator))

    def items(self, indices: list[int], generator: torch.Generator) -> list[Item]:
        """What ``batch`` makes a batch of."""
        seeds = torch.randint(2**62, (len(indices),), generator=generator).tolist()
        with ThreadPoolExecutor(self.config.workers) as pool:
            return list(pool.map(self.read, indices, seeds))

    def read(self, index: int, seed: int) -> Item:
        """The item of a sample or, where it cannot be used, of what stands in for it.

        It depends on the files and the arguments alone, not on what was read before: a resumed run reads the same.
        """
        wanted, tried = index, set[int]()
        while True:
            row = self.selection.rows[index]
            try:
                found = self.conditions.load(self._item(row, seeded(seed)))
            except ItemError as error:
                self._check_there(row)
                self.failures.add(index, error)
                tried.add(index)
                index = self.failures.stand_in(wanted, tried, self.loads())
            else:
                self.failures.one_is_usable = True
                return found

    @abstractmethod
    def collate(self, items: Sequence[Item]) -> Batch:
        """A batch of these items."""


class StructureLatents(OfficialDataset):
    """Structure latents [B, C, r, r, r]."""

    Config: ClassVar[Any] = StructureConfig
    layout = "dense"

    def collate(self, items: Sequence[Item]) -> Batch:
        latents = torch.stack([item.latents for item in items])
        return Batch(latents, Dense(len(items)), self.conditions.encode(items))


class StructuredLatents(OfficialDataset):
    """Structured latents [T, C], ``Packed`` with their voxels; normalised as the teacher's unless told otherwise."""

    Config: ClassVar[Any] = LatentsConfig
    layout = "packed"
    count = "num_voxels"  # column of the table

    def _normalisation(self) -> Normalisation | None:
        return wanted_normalisation(self.config.normalisation, "normalisation", self.backbone)

    @cached_property
    def _voxels(self) -> list[int]:
        return [int(row.number(self.count) or 0) for row in self.selection.rows]

    def loads(self) -> Sequence[int]:
        """The number of voxels in every object's row."""
        return self._voxels

    def collate(self, items: Sequence[Item]) -> Batch:
        layout = packed([item.coords for item in items if item.coords is not None])
        return Batch(torch.cat([item.latents for item in items]), layout, self.conditions.encode(items))


def wanted_normalisation(wanted: Any, key: str, backbone: Backbone) -> Normalisation | None:
    """What the config's ``key`` asks for: numbers, "stored" for none, or "teacher" for the backbone's own of this name.

    Raises:
        FewstepError: the teacher has none.
    """
    if wanted == "stored" or isinstance(wanted, Normalisation):
        return None if wanted == "stored" else wanted
    found: Normalisation | None = getattr(backbone, key, None)
    if found is None:
        text = "stored, or mean and std: the teacher has none, and no pipeline.json lies beside it"
        raise invalid(f"data.{key}", "teacher", text)
    return found


def seeded(seed: int) -> Draw:
    """Draws from a generator with this seed."""
    draws = torch.Generator().manual_seed(seed)
    return lambda count: int(torch.randint(count, (1,), generator=draws))
