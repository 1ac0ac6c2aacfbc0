"""The records of a bench on disk, one file per cell, so that objects can be paired and resampled without sampling
again."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from fewstep.benchmark.entrants import OTHER_NOISE, TEACHER
from fewstep.benchmark.rows import Cell
from fewstep.core.suite import Record, Suite
from fewstep.errors import FewstepError
from fewstep.files import new_file

FOLDER = "cells"  # below that of the bench


def objects_in(record: Record) -> int:
    """The number of objects in a record."""
    return len(next(iter(record.values())))


class Cells:
    """``.npz`` files of records, named by label, steps, training and seed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER

    def path(self, cell: Cell) -> Path:
        """The file of a cell. Characters of the label that file names cannot have are replaced; a checksum tells
        similar labels apart."""
        label, steps, (training, seed) = cell
        name = f"{re.sub('[^a-z0-9]+', '-', label.lower())[:40]}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"
        numbers = {"steps": steps, "training": training, "seed": seed}
        parts = [f"{key}{number}" for key, number in numbers.items() if number is not None]
        return self.folder / f"{'-'.join([name, *parts])}.npz"

    def write(self, cell: Cell, record: Record) -> None:
        """Write a cell's record; raises as ``new_file`` does."""
        with new_file(self.path(cell)) as temp:
            arrays: dict[str, Any] = {name: value.cpu().numpy() for name, value in record.items()}
            np.savez(temp, **arrays)

    def read(self, cell: Cell) -> Record | None:
        """A cell's record; None if there is none.

        Raises:
            FewstepError: for a damaged file.
        """
        path = self.path(cell)
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                return {name: torch.from_numpy(file[name]) for name in file.files}
        except (OSError, ValueError, BadZipFile) as error:
            raise FewstepError(f"{path}: damaged ({error}); accepted: the record that a bench wrote") from None


class Scorer:
    """Computes measures from the records of a bench.

    Args:
        order: seeds of all noise in the bench.
        teacher_steps: step count of the teacher that everything is compared with.
    """

    def __init__(self, suite: Suite, cells: Cells, order: Sequence[int], teacher_steps: int) -> None:
        self.suite, self.cells, self.order, self.teacher_steps = suite, cells, order, teacher_steps
        self._teachers: dict[int, Record] = {}

    def __call__(self, cell: Cell, counts: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """The suite's measures, [B] each, of the objects (B = 1) or of resamples.

        Args:
            counts: the resamples, as ``Suite.score`` takes them.
        """
        record, seed = self.record(cell), self.against(cell)
        if counts is None:
            counts = torch.ones(1, objects_in(record), dtype=torch.float64)
        other = self._teacher(self._before(seed)) if len(self.order) > 1 else None
        return self.suite.score(record, self._teacher(seed), other, counts)

    def record(self, cell: Cell) -> Record:
        """The record of a cell. Raises FewstepError if there is none."""
        record = self.cells.read(cell)
        if record is None:
            raise FewstepError(f"{self.cells.path(cell)}: no such file; accepted: the records of a whole bench")
        return record

    def _teacher(self, seed: int) -> Record:
        if seed not in self._teachers:
            self._teachers[seed] = self.record((TEACHER, self.teacher_steps, (None, seed)))
        return self._teachers[seed]

    def against(self, cell: Cell) -> int:
        """The seed of the teacher's samples that a cell's objects are compared with one by one: the cell's own, or the
        next one for "teacher, other noise", which compares the teacher with itself."""
        label, _, (_, seed) = cell
        if seed is None:
            return self.order[0]
        return self.order[(self.order.index(seed) + 1) % len(self.order)] if label == OTHER_NOISE else seed

    def _before(self, seed: int) -> int:
        """The seed of the teacher's samples from other noise: the one before it; for the first the second, so that
        adding seeds changes nothing."""
        return self.order[abs(self.order.index(seed) - 1)]
