"""Procedural furniture as a prepared set: as many objects as wanted, by seed, resumable."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fewstep.engine.device import pick_device
from fewstep.errors import FewstepError, invalid, need
from fewstep.files import check_place, discard, new_file
from fewstep_shapes3d.data import SWEETHOME3D
from fewstep_shapes3d.data.clusters import TEST, THRESHOLD, TRAIN, VALIDATION, mirror, overlap
from fewstep_shapes3d.data.jobs import Made, Progress, make_all
from fewstep_shapes3d.data.joined import SHARED
from fewstep_shapes3d.data.prepare import encode_views, write_set
from fewstep_shapes3d.data.prepared import PreparedSet
from fewstep_shapes3d.data.sh3f import Skipped
from fewstep_shapes3d.data.voxels import unpack
from fewstep_shapes3d.furniture import Piece
from fewstep_shapes3d.measures import features

PART = 50  # pieces of one file of an unfinished set: an interruption repeats at most these


@dataclass(frozen=True)
class Series:
    """Which pieces, and how they are seen. The first ``held_out`` numbers are test objects, the next as many
    validation objects, so a larger set of the same seed holds the same objects out."""

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
    """Makes procedural furniture and writes it as a prepared set to ``out``.

    An interrupted call leaves ``out`` + ".parts", from which the same call goes on.

    Args:
        out: the folder to make. It must not exist.
        pieces: training objects.
        held_out: test objects, and as many validation objects.
        views: pictures of each object.
        seed: of the pieces and the cameras.
        like: a prepared set whose resolution and map from pictures to tokens this one takes over, so that the two can
            be joined and one teacher learns from both.
        workers: processes.
        device: where the pictures are encoded.
        progress: called as ``progress(done, total, name)``.

    Returns:
        The manifest, as written to ``manifest.json``. ``near_duplicates`` counts the held-out pieces that overlap with
        a training piece, or its mirror image, by more than 0.7 (IoU).

    Raises:
        FewstepError: ``out`` exists, ``like`` is no prepared set, or a value is out of range.
    """
    need("open3d")
    target, series = Path(out), Series(pieces, held_out, views, seed)
    if target.exists():
        raise invalid("data.out", str(target), "a folder that does not exist yet; nothing is overwritten")
    check_place("data.out", target)
    for name, least in {"pieces": 1, "held_out": 2, "views": 1, "seed": 0, "workers": 1}.items():
        got = workers if name == "workers" else getattr(series, name)
        if got < least:
            raise invalid(name, got, f"{least} or more")
    maker = _Maker(PreparedSet.load(like), series, workers, pick_device(device, "--device"))
    folder = target.with_name(f"{target.name}.parts")
    made, tokens = maker.all(folder, progress or (lambda done, total, name: None))
    codes = np.array([series.split(number) for number in range(len(made))], dtype=np.uint8)
    arrays = {"occupancy": np.stack([item.bits for item in made]), "split": codes, "tokens": tokens, **maker.shared}
    more = {**asdict(series), "near_duplicates": _near_duplicates(made, codes, maker.like.resolution)}
    settings = {"resolution": maker.like.resolution, "channels": maker.like.channels, **more}
    manifest = write_set(target, [], made, [], np.arange(len(made)), codes, arrays, settings)
    discard(folder)
    return manifest


class _Maker:
    """Makes the pieces of a series part by part, each kept in a file."""

    def __init__(self, like: PreparedSet, series: Series, workers: int, device: torch.device) -> None:
        self.like, self.series, self.workers = like, series, workers
        self.encoder = features.ImageEncoder(like.basis()).to(device)
        self.shared = {key: like.arrays[key] for key in SHARED}

    def all(self, folder: Path, progress: Progress) -> tuple[list[Made], npt.NDArray[np.int8]]:
        """Every piece, and int8 tokens [N,views,2,49,C] of their pictures."""
        made, tokens, series = list[Made](), list[npt.NDArray[np.int8]](), self.series
        total = series.pieces + 2 * series.held_out
        for start in range(0, total, PART):
            entries = [Piece.draw(series.seed, number) for number in range(start, min(start + PART, total))]
            path = folder / f"{self.key}-{start:06d}-{len(entries)}.npz"
            if not path.exists():
                self._make(path, entries, partial(_further, progress, start, total))
            found, codes = _read(path, entries)
            made += found
            tokens.append(codes)
        return made, np.concatenate(tokens)

    @property
    def key(self) -> str:
        """Of what an unfinished set's files depend on."""
        digest = hashlib.sha256(f"{self.series.seed} {self.series.held_out} {self.series.views}".encode())
        for array in (np.array(self.like.resolution), *self.shared.values()):
            digest.update(array.tobytes())
        return digest.hexdigest()[:12]

    def _make(self, path: Path, entries: list[Piece], progress: Progress) -> None:
        scale, made, tokens = torch.from_numpy(self.like.arrays["token_scale"]), list[Made](), list[torch.Tensor]()
        for one in make_all(entries, self.like.resolution, self.series.views, self.series.seed, self.workers, progress):
            if isinstance(one, Skipped):
                raise FewstepError(f"furniture: {one.what} cannot be made: {one.reason}")
            found = (encode_views(self.encoder, one.pictures) / scale).round().clamp(-127, 127).to(torch.int8)
            if self.series.split(entries[len(made)].number) != TRAIN:
                found[1:], found[:, 1:] = 0, 0  # as in every prepared set: a held-out object has one picture
            made.append(one)
            tokens.append(found)
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as part:
            np.savez_compressed(
                part,
                bits=np.stack([one.bits for one in made]),
                first=np.stack([one.pictures[0] for one in made]),
                cameras=np.stack([one.cameras for one in made]),
                voxels=np.array([len(one.surface) for one in made]),
                surface=np.concatenate([one.surface for one in made]),
                tokens=torch.stack(tokens).numpy(),
            )


def _further(progress: Progress, start: int, total: int, done: int, _: int, name: str) -> None:
    progress(start + done, total, name)


def _read(path: Path, entries: list[Piece]) -> tuple[list[Made], npt.NDArray[np.int8]]:
    with np.load(path, allow_pickle=False) as file:
        surfaces = np.split(file["surface"], file["voxels"].cumsum()[:-1])
        rows = zip(entries, file["bits"], file["first"][:, None], file["cameras"], surfaces, strict=True)
        return [Made(*row) for row in rows], file["tokens"]


def _near_duplicates(made: list[Made], codes: npt.NDArray[np.uint8], resolution: int) -> int:
    grids = unpack(np.stack([item.bits for item in made]), resolution)
    train, held = grids[codes == TRAIN], grids[codes != TRAIN]
    near = np.maximum(overlap(held, train), overlap(held, mirror(train))) > THRESHOLD
    return int(near.any(1).sum())
