"""Data sets hand out batches by index; which index belongs to which step is a function of the seed alone."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field

from fewstep.config.base import Strict
from fewstep.core.batch import Batch
from fewstep.core.batching import Cuts, balanced_groups, training_order
from fewstep.errors import invalid

if TYPE_CHECKING:
    from fewstep.core.backbone import Backbone


Progress = Callable[[int, int, str], None]  # samples done, samples in total, what is being done


def silent(done: int, total: int, what: str) -> None:
    """The ``Progress`` that shows nothing."""


class PackedDataConfig(Strict):
    """The key of data sets whose samples differ in length."""

    voxel_budget: int | None = Field(
        None,
        ge=1,
        description="largest number of voxels in a micro-batch, which takes as many samples as fit, up to "
        "train.batch_size; none: train.batch_size samples, whatever their size",
    )


class Dataset(ABC):
    """Training batches for a backbone. A subclass sets ``Config`` and implements ``__len__`` and ``batch``.

    ``provides`` names what its batches hold besides samples and conditions, such as "pairs" where they are of a class
    derived from ``Batch``. Methods ask for it in ``Objective.needs``.

    Set ``reads_ahead`` if ``batch`` is slow, for instance because it reads files, and may be called from another thread
    while the network computes. A run then reads the batches of the next iteration during the current one.

    For samples of unequal length, implement ``loads``, so that micro-batches are balanced, and derive ``Config`` from
    ``PackedDataConfig``, so that samples can be packed by a budget.

    Args:
        config: an instance of ``Config``.
        backbone: the teacher's network, for data that must fit it (latent shape, condition width).
    """

    Config: ClassVar[type[Strict]]
    provides: ClassVar[frozenset[str]] = frozenset()
    reads_ahead: ClassVar[bool] = False
    evaluations: int = 0  # of the teacher, counted per sample, that ``prepare`` costs; cached ones included
    _cut: tuple[tuple[int, int, int], Cuts] | None = None

    def __init__(self, config: Any, backbone: Backbone) -> None:
        self.config, self.backbone = config, backbone

    @classmethod
    def check_config(cls, config: Any) -> None:
        """Refuse what can be refused before a teacher is loaded, such as a missing folder. Raises FewstepError."""
        del config  # the base class knows none of its keys

    @abstractmethod
    def __len__(self) -> int:
        """The number of training samples."""

    @abstractmethod
    def batch(self, indices: list[int], generator: torch.Generator) -> Batch:
        """The samples with these indices, on the CPU; augmentation draws from ``generator`` only."""

    def prepare(self, device: torch.device, progress: Progress = silent) -> None:  # noqa: B027
        """Slow work that training needs, such as encoding latents. A run calls it once, before its first step.

        Args:
            device: where the run trains; the batches stay on the CPU.
            progress: called with what is done so far.
        """

    def loads(self) -> Sequence[int] | None:
        """Rows of each sample; None if all samples have the same shape."""
        return None

    def notes(self) -> list[str]:
        """Lines for the user since the last call: what was read, left out or could not be read."""
        return []

    def training_batch(self, step: int, size: int, seed: int, rank: int = 0, ranks: int = 1) -> Batch:
        """A micro-batch. Epochs are seeded permutations, so a resumed run sees what an unbroken one sees."""
        key = zlib.crc32(f"data/{seed}/{step}/{rank}".encode())
        draws = torch.Generator().manual_seed((seed << 32) ^ key)
        return self.batch(self.indices(step, size, seed, rank, ranks), draws)

    def indices(self, step: int, size: int, seed: int, rank: int = 0, ranks: int = 1) -> list[int]:
        """The samples of a micro-batch. The ranks of a step divide its samples in training order: into equal slices,
        or, where samples differ in length, groups of ``size`` samples balanced by length or packed by the budget.

        Args:
            size: samples of a micro-batch; with a voxel budget, the largest number of them.
        """
        loads, budget = self.loads(), getattr(self.config, "voxel_budget", None)
        if loads is not None and budget is not None:
            return self._cuts(loads, budget, size, seed, ranks).micro_batches(step)[rank]
        samples = training_order(len(self), seed, step * ranks * size, (step + 1) * ranks * size)
        if loads is None or ranks == 1:
            return samples[rank * size : (rank + 1) * size]
        groups = balanced_groups([loads[sample] for sample in samples], ranks, size)
        return [samples[i] for i in sorted(groups[rank])]

    def _cuts(self, loads: Sequence[int], budget: int, most: int, seed: int, ranks: int) -> Cuts:
        key = (seed, ranks, most)
        if self._cut is None or self._cut[0] != key:
            if max(loads) > budget:
                raise invalid("data.voxel_budget", budget, f"at least the largest sample, {max(loads)} voxels")
            self._cut = key, Cuts(seed, loads, budget, ranks, most)
        return self._cut[1]
