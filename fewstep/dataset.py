"""Data sets hand out batches by index; which index belongs to which step is a function of the seed alone."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from fewstep.batch import Batch
from fewstep.config import Strict

if TYPE_CHECKING:
    from fewstep.backbone import Backbone


class Dataset(ABC):
    """Training batches for a backbone. A subclass sets ``Config`` and implements ``__len__`` and ``batch``.

    Args:
        config: an instance of ``Config``.
        backbone: the teacher's network, for data that must fit it (latent shape, condition width).
    """

    Config: ClassVar[type[Strict]]

    def __init__(self, config: Any, backbone: Backbone) -> None:
        self.config, self.backbone = config, backbone

    @abstractmethod
    def __len__(self) -> int:
        """Training samples."""

    @abstractmethod
    def batch(self, indices: list[int], generator: torch.Generator) -> Batch:
        """These samples; augmentation draws from ``generator`` only."""

    def training_batch(self, step: int, size: int, seed: int, rank: int = 0, ranks: int = 1) -> Batch:
        """The batch of a step: epochs are seeded permutations, so a resumed run sees what an unbroken one sees."""
        start = (step * ranks + rank) * size
        indices = [self._at(position, seed) for position in range(start, start + size)]
        key = zlib.crc32(f"data/{seed}/{step}/{rank}".encode())
        return self.batch(indices, torch.Generator().manual_seed((seed << 32) ^ key))

    def _at(self, position: int, seed: int) -> int:
        epoch, offset = divmod(position, len(self))
        if getattr(self, "_epoch", None) != (epoch, seed):
            order = torch.Generator().manual_seed((seed << 32) ^ epoch)
            self._order, self._epoch = torch.randperm(len(self), generator=order).tolist(), (epoch, seed)
        return int(self._order[offset])
