"""What a backbone offers to ``fewstep bench``: held-out conditions, a decoder, measures and pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.core.batch import Batch
from fewstep.core.dataset import Dataset
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Layout
from fewstep.core.objective import Step
from fewstep.errors import FewstepError, invalid
from fewstep.files import file_suffix, new_file


@dataclass(frozen=True)
class SheetRow:
    """A row of a contact sheet; it unpacks as ``label, objects``.

    Args:
        label: whose objects these are, and in how many steps.
        objects: as the suite decoded them.
        notes: lines below the label, such as the score.
        group: rows of one group stand together.
    """

    label: str
    objects: Any
    notes: tuple[str, ...] = ()
    group: str = ""

    def __iter__(self) -> Iterator[Any]:
        return iter((self.label, self.objects))

    @staticmethod
    def of(rows: Rows) -> list[SheetRow]:
        """Rows, of which some may be pairs (label, objects)."""
        return [row if isinstance(row, SheetRow) else SheetRow(*row) for row in rows]


Rows = Sequence[SheetRow | tuple[str, Any]]
Record = Mapping[str, Tensor]


@dataclass(frozen=True)
class Exhibit:
    """One object to rotate on the page of a bench: its condition, the truth, and what each row made of it.

    Models are binary glTF files (.glb), empty where there is nothing to see.

    Args:
        name: which object this is.
        picture: the condition, a PNG file.
        truth: model of the true object.
        models: one model for each row of the sheet.
        azimuth: degrees around the vertical axis from which the picture was taken.
    """

    name: str
    picture: bytes
    truth: bytes
    models: tuple[bytes, ...]
    azimuth: float = 0.0


class Suite(ABC):
    """An evaluation on held-out samples. A backbone returns one from ``Backbone.suite(config, dataset)``.

    ``headline`` is the measure that the chart and the summary use ("": nothing can be measured); ``lower_is_better``
    names the measures where less is better, ``signed`` those that may be negative; ``charts`` are further measures with
    a panel of their own; ``titles`` are measures in words ("Fréchet distance of views"), and ``legend`` explains a
    measure (or several: "a, b") in one line; ``suffixes`` are those of the files that ``write`` makes, the usual one
    first; ``sampled`` is the number of prompts on the sample sheets of a run.

    There are two ways to measure. With ``record`` and ``score`` a bench keeps the records, resamples objects, and pairs
    them with an earlier bench. With ``measure`` alone, intervals are over seeds and trainings only. ``nearness`` names
    the tensor [N] of the record that says how near each object is to the truth, for win rates; high is near, unless the
    name is in ``lower_is_better``.
    """

    headline: str = ""
    lower_is_better: frozenset[str] = frozenset()
    signed: frozenset[str] = frozenset()
    charts: tuple[str, ...] = ()
    nearness: str = ""
    suffixes: tuple[str, ...] = (".png",)
    sampled: int = 8
    titles: Mapping[str, str] = MappingProxyType({})
    legend: Mapping[str, str] = MappingProxyType({})

    def to(self, device: torch.device) -> None:
        """Decode and encode on this device from now on; prompts and objects stay on the CPU."""
        del device

    @abstractmethod
    def prompts(self, limit: int | None = None) -> Batch:
        """The held-out batch, in a fixed order: true latents, layout, conditions."""

    def noise(self, seed: int, batch: Batch) -> Tensor:
        """The starting noise of a seed, like ``batch.x0``: the same for every method that is measured.

        A suite whose layout depends on an earlier stage may override it, so that samples of different layouts share
        their noise where they overlap.
        """
        return Step(index=0, interpolant=Interpolant(), seed=seed).randn_like(batch.x0, "noise")

    def condition(self, limit: int | None = None) -> None:
        """Run the condition encoder once for these prompts, so that it can be timed. Without one, do nothing."""
        del limit

    @abstractmethod
    def decode(self, x: Tensor, layout: Layout) -> Any:
        """Samples (latents) to objects."""

    def following(self, objects: Any) -> Layout:
        """The layout of the next stage's samples on these objects, such as the occupied voxels of structures.

        Raises:
            FewstepError: where no stage follows.
        """
        raise FewstepError(f"{type(self).__name__}: no stage is sampled on its objects; accepted: one --stage alone")

    def record(self, objects: Any, teacher_objects: Any) -> Record:
        """What the measures are computed from: tensors [N, ...] with a row for each object, such as features, or its
        distance to the teacher's object from the same noise (``teacher_objects``)."""
        raise NotImplementedError(f"{type(self).__name__} keeps no records")

    def score(self, record: Record, teacher: Record, other: Record | None, counts: Tensor) -> dict[str, Tensor]:
        """Every quality measure, [B] each, of B resamples of a record's objects.

        Args:
            record: of the first N held-out objects.
            teacher: the teacher's record from the same noise.
            other: the teacher's record from other noise; None where a bench has one seed.
            counts: [B, N], how often each object is in a resample; all 1 for the objects as they are. Held-out objects
                are resampled with what was made under their conditions.
        """
        raise NotImplementedError(f"{type(self).__name__} keeps no records")

    def measure(self, objects: Any, teacher_objects: Any) -> dict[str, float]:
        """Every quality measure of generated objects against the truth and against the teacher's own result from the
        same noise (``teacher_objects``)."""
        record, teacher = self.record(objects, teacher_objects), self.record(teacher_objects, teacher_objects)
        once = torch.ones(1, len(next(iter(record.values()))), dtype=torch.float64)
        return {name: float(value) for name, value in self.score(record, teacher, None, once).items()}

    @property
    def keeps_records(self) -> bool:
        """Whether this suite is measured by ``record`` and ``score``."""
        return type(self).record is not Suite.record

    @abstractmethod
    def sheet(self, rows: Rows, path: Path, count: int) -> None:
        """A contact sheet: ``count`` objects as columns below condition and truth, and a row for each of ``rows``."""

    def strip(self, rows: Rows, path: Path, count: int) -> None:
        """A picture for the top of a page: ``count`` objects of a few ``rows``. By default it is their sheet."""
        self.sheet(rows, path, count)

    def gallery(self, rows: Rows, count: int) -> list[Exhibit]:
        """``count`` objects of ``rows`` to rotate in a viewer; none where they are not three-dimensional."""
        del rows, count
        return []

    def in_words(self, measure: str) -> str:
        """The title of a measure, or its name."""
        return self.titles.get(measure, measure.replace("_", " "))

    def prompt_from(self, image: Path, background: str = "remove") -> Batch:
        """One sample to make from a picture: its condition, its layout and an ``x0`` of the right shape.

        Args:
            image: the file.
            background: of an opaque picture, "remove" or "keep".

        Raises:
            FewstepError: for a backbone that takes no pictures, or a file that is no picture.
        """
        raise FewstepError(f"--image {str(image)!r}: this backbone takes no image; leave --image out")

    def write(self, objects: Any, path: Path, prompts: Batch | None = None) -> list[Path]:
        """Write what was sampled under these prompts into the folder ``path`` or as that file; returns the files."""
        file = path if file_suffix(path) else path / "samples.png"
        with new_file(file) as temp:
            self.sheet([SheetRow("samples", objects)], temp, 8)
        return [file]


class Unmeasured(Suite):
    """Samples under the conditions of any data set's first training samples, for ``fewstep sample``.

    There are no held-out objects to measure against. Here a sample is its own object, written as an array; a backbone
    with a decoder overrides ``decode`` and ``write``.
    """

    suffixes: tuple[str, ...] = (".npz",)

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def to(self, device: torch.device) -> None:
        self.dataset.prepare(device)

    def prompts(self, limit: int | None = None) -> Batch:
        count = min(limit or 8, len(self.dataset))
        return self.dataset.batch(list(range(count)), torch.Generator().manual_seed(0)).to("cpu")

    def decode(self, x: Tensor, layout: Layout) -> Any:
        return x

    def measure(self, objects: Any, teacher_objects: Any) -> dict[str, float]:
        raise FewstepError(f"{type(self.dataset).__name__} has no held-out objects to measure against")

    def sheet(self, rows: Rows, path: Path, count: int) -> None:
        raise FewstepError(f"{type(self.dataset).__name__} has no held-out objects to show beside samples")

    def write(self, objects: Any, path: Path, prompts: Batch | None = None) -> list[Path]:
        """The samples as the array ``samples`` of an ``.npz`` file.

        Raises:
            FewstepError: for another suffix.
        """
        if (suffix := file_suffix(path)) not in ("", ".npz"):
            raise invalid("--out", str(path), f"a name ending in {' or '.join(self.suffixes)}, or a folder")
        file = path if suffix else path / "samples.npz"
        with new_file(file) as temp:
            np.savez(temp, samples=objects.numpy())
        return [file]
