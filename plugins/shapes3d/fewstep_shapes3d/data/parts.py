"""Objects made part by part, each part kept in a file, so that an interrupted call goes on where it stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fewstep.files import new_file
from fewstep_shapes3d.data.clusters import TRAIN
from fewstep_shapes3d.data.jobs import Item, Made, Progress, make_all
from fewstep_shapes3d.data.joined import SHARED
from fewstep_shapes3d.data.newset import encode_views
from fewstep_shapes3d.data.prepared import PreparedSet
from fewstep_shapes3d.data.sh3f import Skipped
from fewstep_shapes3d.measures import features

PART = 50  # objects per file of an unfinished set: an interruption loses at most these
Tokens = npt.NDArray[np.int8]  # [views,2,49,C] of one object


class Maker:
    """Makes objects with the resolution and the picture tokens of the prepared set ``like``.

    Args:
        views: pictures per object.
        seed: of their cameras.
        workers: processes.
        device: where the pictures are encoded.
    """

    def __init__(self, like: PreparedSet, views: int, seed: int, workers: int, device: torch.device) -> None:
        self.like, self.views, self.seed, self.workers = like, views, seed, workers
        self.encoder = features.ImageEncoder(like.basis()).to(device)
        self.shared = {key: like.arrays[key] for key in SHARED}

    def all(
        self, entries: Sequence[Item], folder: Path, progress: Progress
    ) -> tuple[list[Made], list[Tokens], list[Skipped]]:
        """The objects with their first picture only, the tokens of all their pictures, and what was skipped.

        Args:
            entries: their ``repr`` must say everything that the objects depend on.
            folder: of the parts. Those already there are not made again.
        """
        parts = [entries[start : start + PART] for start in range(0, len(entries), PART)]
        paths = [folder / f"{self._digest(part)}.npz" for part in parts]
        missing = [(path, part) for path, part in zip(paths, parts, strict=True) if not path.exists()]
        rest = [entry for _, part in missing for entry in part]

        def further(done: int, total: int, name: str) -> None:
            progress(len(entries) - total + done, len(entries), name)

        results = make_all(rest, self.like.resolution, self.views, self.seed, self.workers, further)
        with closing(results):
            for path, part in missing:
                self._write(path, islice(results, len(part)))
        made, tokens, skipped = list[Made](), list[Tokens](), list[Skipped]()
        for path, part in zip(paths, parts, strict=True):
            with np.load(path, allow_pickle=False) as file:
                skipped += [Skipped(what, reason) for what, reason in file["skipped"].tolist()]
                if len(file["rows"]):
                    made += _made(file, [part[row] for row in file["rows"]])
                    tokens += list(file["tokens"])
        return made, tokens, skipped

    def _digest(self, part: Sequence[Item]) -> str:
        digest = hashlib.sha256(f"{self.like.resolution} {self.views} {self.seed} {list(part)}".encode())
        for array in self.shared.values():
            digest.update(array.tobytes())
        return digest.hexdigest()[:24]

    def _write(self, path: Path, results: Iterator[Made | Skipped]) -> None:
        scale = torch.from_numpy(self.like.arrays["token_scale"])
        rows, made, tokens, skipped = list[int](), list[Made](), list[torch.Tensor](), list[tuple[str, str]]()
        for row, one in enumerate(results):
            if isinstance(one, Skipped):
                skipped.append((one.what, one.reason))
                continue
            rows.append(row)
            made.append(one)
            found = encode_views(self.encoder, one.pictures)[..., : -features.POSITIONS]  # the same for all pictures
            tokens.append((found / scale).round().clamp(-127, 127).to(torch.int8))
        arrays = {"rows": np.array(rows, np.int64), "skipped": np.array(skipped, str).reshape(-1, 2)}
        if made:
            arrays |= {
                "bits": np.stack([one.bits for one in made]),
                "first": np.stack([one.pictures[0] for one in made]),
                "cameras": np.stack([one.cameras for one in made]),
                "voxels": np.array([len(one.surface) for one in made]),
                "surface": np.concatenate([one.surface for one in made]),
                "tokens": torch.stack(tokens).numpy(),
            }
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as temp:
            np.savez_compressed(temp, **arrays)  # type: ignore[arg-type]


def _made(file: Mapping[str, npt.NDArray[Any]], entries: list[Item]) -> list[Made]:
    surfaces = np.split(file["surface"], file["voxels"].cumsum()[:-1])
    columns = zip(entries, file["bits"], file["first"][:, None], file["cameras"], surfaces, strict=True)
    return [Made(*row) for row in columns]


def held_back(tokens: Sequence[Tokens], codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.int8]:
    """Tokens [N,views,2,49,C] without those that a prepared set leaves out: held-out objects keep one picture's."""
    found = np.stack(tokens)
    found[codes != TRAIN, 1:] = 0
    found[codes != TRAIN, :, 1:] = 0
    return found
