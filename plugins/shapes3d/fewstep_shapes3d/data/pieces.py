"""Procedural furniture as a prepared set: any number of objects, by seed, resumable."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.engine.device import pick_device
from fewstep.errors import FewstepError, invalid
from fewstep.files import discard
from fewstep_shapes3d.data import SWEETHOME3D
from fewstep_shapes3d.data.clusters import TEST, THRESHOLD, TRAIN, VALIDATION, mirror, overlap
from fewstep_shapes3d.data.jobs import Made, Progress
from fewstep_shapes3d.data.newset import new_set, write_set
from fewstep_shapes3d.data.parts import Maker, held_back
from fewstep_shapes3d.data.prepared import PreparedSet
from fewstep_shapes3d.data.voxels import unpack
from fewstep_shapes3d.furniture import Piece


@dataclass(frozen=True)
class Series:
    """Which pieces, and how they are seen. The first ``held_out`` numbers are test objects, the next ``held_out``
    validation objects, so a larger set of the same seed holds out the same objects."""

    pieces: int
    held_out: int
    views: int
    seed: int

    def split(self, number: int) -> int:
        """The split code of a piece."""
        return TEST if number < self.held_out else VALIDATION if number < 2 * self.held_out else TRAIN


def prepare_furniture(
    out: Path | str,
    *,
    pieces: int = 2000,
    held_out: int = 96,
    views: int = 2,
    seed: int = 0,
    like: Path | str = SWEETHOME3D,
    workers: int = 2,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make procedural furniture and write it as a prepared set to ``out``.

    An interrupted call leaves ``out`` + ".parts", from which the same call goes on.

    Args:
        out: the folder to make. It must not exist.
        pieces: training objects.
        held_out: test objects, and as many validation objects.
        views: pictures per object.
        seed: of the pieces and the cameras.
        like: a prepared set from which this one takes resolution and the map from pictures to tokens, so that the two
            can be joined and one teacher learns from both.
        workers: processes.
        device: where the pictures are encoded.
        progress: called as ``progress(done, total, name)``.

    Returns:
        The manifest, as written to ``manifest.json``. ``near_duplicates`` counts the held-out pieces that overlap with
        a training piece, or its mirror image, by more than 0.7 (IoU).

    Raises:
        FewstepError: ``out`` exists, ``like`` is not a prepared set, or a value is out of range.
    """
    target, series = new_set(out), Series(pieces, held_out, views, seed)
    for name, least in {"pieces": 1, "held_out": 2, "views": 1, "seed": 0, "workers": 1}.items():
        got = workers if name == "workers" else getattr(series, name)
        if got < least:
            raise invalid(name, got, f"{least} or more")
    maker = Maker(PreparedSet.load(like, key="--like"), views, seed, workers, pick_device(device, "--device"))
    entries = [Piece.draw(seed, number) for number in range(pieces + 2 * held_out)]
    folder = target.with_name(f"{target.name}.parts")
    made, tokens, skipped = maker.all(entries, folder, progress or (lambda done, total, name: None))
    if skipped:
        raise FewstepError(f"furniture: {skipped[0].what} cannot be made: {skipped[0].reason}")
    codes = np.array([series.split(number) for number in range(len(made))], dtype=np.uint8)
    arrays = {"occupancy": np.stack([item.bits for item in made]), "split": codes, "tokens": held_back(tokens, codes)}
    more = {**asdict(series), "near_duplicates": _near_duplicates(made, codes, maker.like.resolution)}
    settings = {"resolution": maker.like.resolution, "channels": maker.like.manifest["channels"], **more}
    manifest = write_set(target, [], made, [], np.arange(len(made)), codes, arrays | maker.shared, settings)
    discard(folder)
    return manifest


def _near_duplicates(made: list[Made], codes: npt.NDArray[np.uint8], resolution: int) -> int:
    grids = unpack(np.stack([item.bits for item in made]), resolution)
    train, held = grids[codes == TRAIN], grids[codes != TRAIN]
    near = np.maximum(overlap(held, train), overlap(held, mirror(train))) > THRESHOLD
    return int(near.any(1).sum())
