"""The records of a bench on disk: a file a cell, so that objects are paired and resampled without sampling again."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from fewstep.benchmark.rows import Row, Unit
from fewstep.core.suite import Record
from fewstep.errors import FewstepError
from fewstep.files import new_file

FOLDER = "cells"  # below that of the bench
Cell = tuple[str, int, Unit]  # label, steps, unit


def cell_of(row: Row) -> Cell:
    """The cell that a row is of."""
    return row.label, row.steps, (row.training, row.seed)


class Cells:
    """``.npz`` files of records, named by label, steps, training and seed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER

    def path(self, cell: Cell) -> Path:
        """The file of a cell. A label may hold what file names may not, so a checksum tells alike ones apart."""
        label, steps, (training, seed) = cell
        name = f"{re.sub('[^a-z0-9]+', '-', label.lower())[:40]}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"
        numbers = {"steps": steps, "training": training, "seed": seed}
        parts = [f"{key}{number}" for key, number in numbers.items() if number is not None]
        return self.folder / f"{'-'.join([name, *parts])}.npz"

    def write(self, cell: Cell, record: Record) -> None:
        """Keep a record; raises as ``new_file`` does."""
        with new_file(self.path(cell)) as temp:
            arrays: dict[str, Any] = {name: value.cpu().numpy() for name, value in record.items()}
            np.savez(temp, **arrays)

    def read(self, cell: Cell) -> Record | None:
        """A cell's record; None where there is none.

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
