"""The work on single objects and on pairs, with results kept in files so that it is done only once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from fewstep.errors import FewstepError, first_line
from fewstep.files import new_file
from fewstep_shapes3d.data.jobs import Progress, in_processes
from fewstep_shapes3d.data.mesh import EmptyMesh
from fewstep_shapes3d.data.meshfiles import MeshFile
from fewstep_shapes3d.score.distances import surface_distances
from fewstep_shapes3d.score.objects import Arrays, Seeing, read_object

EMPTY, UNREADABLE, MISSING = "empty", "unreadable", "missing"


class Task(Protocol):
    """Work whose result is the file ``kept``."""

    @property
    def kept(self) -> Path: ...
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Task)


@dataclass(frozen=True)
class Reading:
    """An object to read. ``box``: the kept file of the object by whose bounds it is scaled; None: its own."""

    file: MeshFile
    kept: Path
    box: Path | None = None

    @property
    def name(self) -> str:
        """For progress."""
        return self.file.name


@dataclass(frozen=True)
class Comparing:
    """A generated object to compare with the true one, both read. Without ``found``, the true one with itself."""

    name: str
    found: Path | None
    truth: Path
    kept: Path


def load(path: Path, *keys: str) -> Arrays:
    """The arrays of a kept file, or some of them."""
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in keys or file.files}


def failure(path: Path) -> tuple[str, str] | None:
    """Kind and reason where an object could not be read."""
    with np.load(path, allow_pickle=False) as file:
        return (str(file["failure"]), str(file["reason"])) if "failure" in file.files else None


class Count:
    """Counts how much of all the work is done, and calls ``tell(done, total, what)``."""

    def __init__(self, tell: Progress, total: int) -> None:
        self.tell, self.total, self.done = tell, total, 0

    def __call__(self, what: str, more: int = 1) -> None:
        """Count ``more`` as done."""
        self.done += more
        if more:
            self.tell(self.done, self.total, what)


def do(tasks: Sequence[T], job: Callable[[T], Arrays], workers: int, count: Count, what: str) -> None:
    """Do the tasks that are not done yet."""
    rest = list({task.kept: task for task in tasks if not task.kept.is_file()}.values())
    count(what, len(tasks) - len(rest))
    with closing(in_processes(partial(_do, job), rest, workers if len(rest) > 1 else 1)) as results:
        for _, task in zip(results, rest, strict=True):
            count(f"{what}, {task.name}")


def _do(job: Callable[[Any], Arrays], task: Task) -> None:
    values = job(task)
    with new_file(task.kept) as temp:
        np.savez_compressed(temp, **values)  # type: ignore[arg-type]


def read(seeing: Seeing, task: Reading) -> Arrays:
    """What ``read_object`` gives, or ``failure`` and ``reason``."""
    box = None if task.box is None else load(task.box, "box")["box"]
    try:
        return read_object(task.file.archive / task.file.model, task.file.up, seeing, box)
    except EmptyMesh as error:
        return {"failure": np.array(EMPTY), "reason": np.array(str(error))}
    except (FewstepError, RuntimeError, ValueError, OSError) as error:  # open3d and numpy, for what they cannot take
        return {"failure": np.array(UNREADABLE), "reason": np.array(first_line(error))}


def compare(thresholds: Sequence[float], alignments: Sequence[str], task: Comparing) -> Arrays:
    """The distances of a pair by name."""
    truth = load(task.truth, "points", "again")
    found = truth["again"] if task.found is None else load(task.found, "points")["points"]
    values = surface_distances(found.astype(np.float64), truth["points"].astype(np.float64), thresholds, alignments)
    return {name: np.array(value) for name, value in values.items()}
