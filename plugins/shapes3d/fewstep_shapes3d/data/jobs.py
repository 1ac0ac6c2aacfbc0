"""The work on one object, and several processes doing it: unpack, read, normalise, voxelise, render."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from fewstep.errors import FewstepError
from fewstep_shapes3d.data.mesh import Mesh
from fewstep_shapes3d.data.sh3f import Skipped

Progress = Callable[[int, int, str], None]
T = TypeVar("T")
R = TypeVar("R")


class Item(Protocol):
    """One object of a source: what a prepared set says about it, and its mesh."""

    @property
    def key(self) -> str:
        """The key by which its cameras are drawn."""

    @property
    def name(self) -> str: ...
    @property
    def category(self) -> str: ...
    @property
    def creator(self) -> str: ...
    @property
    def licence(self) -> str: ...
    @property
    def archive(self) -> Path:
        """The file that it is from; a set keeps the file's name."""

    @property
    def model(self) -> str:
        """Which model of that file it is."""

    def load(self) -> Mesh:
        """Its mesh. Raises FewstepError if it cannot be read."""


@dataclass(frozen=True)
class Made:
    """One object: occupancy bits uint8 [R^3/8], RGBA pictures uint8 [views,224,224,4], cameras [views,2] in degrees,
    and what is known of the surface in each voxel, uint8 [voxels,11]."""

    entry: Item
    bits: npt.NDArray[np.uint8]
    pictures: npt.NDArray[np.uint8]
    cameras: npt.NDArray[np.float64]
    surface: npt.NDArray[np.uint8]


def make_object(entry: Item, resolution: int, views: int, seed: int) -> Made | Skipped:
    """Make one object; if it cannot be used, the reason is returned."""
    from fewstep_shapes3d.data.attributes import describe
    from fewstep_shapes3d.data.mesh import normalise
    from fewstep_shapes3d.data.views import Renderer, draw_cameras
    from fewstep_shapes3d.data.voxels import pack, voxelise

    try:
        mesh = normalise(entry.load())
        grid = voxelise(mesh, resolution)
        cameras, renderer = draw_cameras(entry.key, views, seed), Renderer(mesh)
        pictures = np.stack([renderer.render(camera) for camera in cameras])
    except (FewstepError, RuntimeError, ValueError) as error:  # open3d and numpy, for a mesh they cannot take
        return Skipped(f"{entry.archive.name}: {entry.name} ({entry.model})", str(error))
    if not grid.any() or not (pictures[..., 3] > 0.8 * 255).any((1, 2)).all():
        return Skipped(f"{entry.archive.name}: {entry.name} ({entry.model})", "nothing of it can be seen")
    angles = np.array([[c.azimuth, c.elevation] for c in cameras])
    return Made(entry, pack(grid), pictures, angles, describe(mesh, grid))


def make_all(
    entries: Sequence[Item], resolution: int, views: int, seed: int, workers: int, progress: Progress
) -> Generator[Made | Skipped, None, None]:
    """All objects in the order of the entries; ``progress(done, total, name)`` after each, and before the first, since
    workers take seconds to start."""
    job = partial(make_object, resolution=resolution, views=views, seed=seed)
    if entries:
        progress(0, len(entries), "objects")
    with closing(in_processes(job, entries, workers)) as results:
        for done, (result, entry) in enumerate(zip(results, entries, strict=True), 1):
            progress(done, len(entries), entry.name)
            yield result


def in_processes(job: Callable[[T], R], items: Sequence[T], workers: int) -> Generator[R, None, None]:
    """``job`` of every item, in order, in ``workers`` processes; a single worker is this process.

    Raises:
        FewstepError: a process died.
    """
    if workers < 2:
        yield from map(job, items)
        return
    # Spawned, not forked: torch and open3d keep threads, which a fork would lose.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_uninterrupted)
    try:
        yield from pool.map(job, items)
    except BrokenProcessPool as error:
        raise FewstepError("a worker process died, perhaps for lack of memory; try one worker") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _uninterrupted() -> None:
    """Ctrl-C reaches every process of a terminal; the main one ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
