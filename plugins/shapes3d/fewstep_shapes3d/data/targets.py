"""Training targets of the structured-latent decoders, from the models' files: made once, kept, not shipped.

Each object is one ``.npz`` of a megabyte: signed distance, colour and normal at the corners of the fine cubes around
its surface, and points of the surface with their colours.
"""

from __future__ import annotations

import multiprocessing
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import FewstepError, first_line
from fewstep.files import check_place, new_file
from fewstep_shapes3d.data.jobs import Item
from fewstep_shapes3d.data.meshfiles import find_meshes
from fewstep_shapes3d.data.prepared import PreparedSet
from fewstep_shapes3d.data.sh3f import find_catalogues, read_catalogues

KEYS = ("corners", "distance", "colour", "normal", "points", "shade", "exposed")
POINTS, CLIP = 20000, 0.5  # distances are kept up to half a voxel, two fine cubes


@dataclass(frozen=True)
class Target:
    """``corners`` int64 [P,3] (0 to 4 R), their ``distance`` [P] in voxels, ``colour`` [P,3] in [0,1] and ``normal``
    [P,3]; ``points`` [K,3] of the surface in [-0.5, 0.5], ``shade`` [K,3] their colours, ``exposed`` [K] bool."""

    corners: Tensor
    distance: Tensor
    colour: Tensor
    normal: Tensor
    points: Tensor
    shade: Tensor
    exposed: Tensor

    def flipped(self, top: int) -> Target:
        """The mirror image in x; ``top`` is the largest corner coordinate."""
        turn = torch.tensor([-1, 1, 1])
        corners = self.corners * turn + torch.tensor([top, 0, 0])
        points = self.points * turn
        return Target(corners, self.distance, self.colour, self.normal * turn, points, self.shade, self.exposed)


def make_targets(
    data: PreparedSet, source: Path, folder: Path, workers: int, progress: Callable[[int, int, str], None]
) -> None:
    """Write the targets of every object of ``data`` that has none yet into ``folder``.

    Raises:
        FewstepError: see :func:`matching`.
    """
    entries = matching(data, source)
    check_place("targets", folder)
    jobs = [(index, entry) for index, entry in enumerate(entries) if not _path(folder, index).exists()]
    job = partial(_make, folder=folder, resolution=data.resolution)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done, name in enumerate(pool.map(job, jobs, chunksize=4), 1):
            progress(done, len(jobs), name)


def load_target(folder: Path, index: int) -> Target:
    """The targets of object ``index``.

    Raises:
        FewstepError: they were not made, or the file is damaged.
    """
    path = _path(folder, index)
    try:
        with np.load(path) as file:
            read = {key: torch.from_numpy(file[key]) for key in KEYS}
    except FileNotFoundError as error:
        raise FewstepError(
            f"{folder}: no targets of object {index}; make them: fewstep teach --stage targets"
        ) from error
    except Exception as error:  # numpy raises almost anything on a damaged archive
        text = f"{path}: damaged ({first_line(error)}); delete it, then make it anew: fewstep teach --stage targets"
        raise FewstepError(text) from None
    return Target(
        read["corners"].long(),
        read["distance"].float() / 127 * CLIP,
        read["colour"].float() / 255,
        read["normal"].float() / 127,
        read["points"].float() / 65535 - 0.5,
        read["shade"].float() / 255,
        read["exposed"],
    )


def _path(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.npz"


def matching(data: PreparedSet, source: Path) -> list[Item]:
    """The models in ``source`` that the set was made of, in its order.

    Raises:
        FewstepError: ``source`` holds no models, or not all of the set's.
    """
    up, entries = data.manifest.get("up"), list[Item]()
    entries += find_meshes(source, up, "source") if up else read_catalogues(find_catalogues(source))[0]
    by_row = {(entry.archive.name, entry.model, entry.name): entry for entry in entries}
    rows = [(row["file"], row["model"], row["name"]) for row in data.table]
    missing = [row for row in rows if row not in by_row]
    if missing:
        raise FewstepError(f"source: {source} lacks {len(missing)} of {len(rows)} models of the set: {missing[0]}, ...")
    return [by_row[row] for row in rows]


def _make(job: tuple[int, Item], folder: Path, resolution: int) -> str:
    from fewstep_shapes3d.data.mesh import normalise
    from fewstep_shapes3d.data.surface import SurfaceField
    from fewstep_shapes3d.data.voxels import voxelise

    index, entry = job
    mesh = normalise(entry.load())
    field = SurfaceField(mesh, voxelise(mesh, resolution))
    at = field.at_corners()
    points, shade, exposed = field.points(POINTS, zlib.crc32(entry.key.encode()))
    with new_file(_path(folder, index)) as part:
        np.savez(
            part,
            corners=field.corners.astype(np.uint16),
            distance=np.rint(at.distance.clip(-CLIP, CLIP) / CLIP * 127).astype(np.int8),
            colour=np.rint(at.colour * 255).astype(np.uint8),
            normal=np.rint(at.normal * 127).astype(np.int8),
            points=np.rint((points + 0.5).clip(0, 1) * 65535).astype(np.uint16),
            shade=np.rint(shade * 255).astype(np.uint8),
            exposed=exposed,
        )
    return entry.name
