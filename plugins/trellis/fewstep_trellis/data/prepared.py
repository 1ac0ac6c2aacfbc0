"""Reading a prepared set. Only numpy, torch and Pillow: no open3d, no trimesh."""

from __future__ import annotations

import csv
import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fewstep.errors import FewstepError, invalid

from ..features import TOKENS, WIDTH, TokenBasis
from .clusters import TEST, TRAIN
from .setfiles import ACROSS, ARRAYS, FORMAT, MANIFEST, PICTURE, PICTURES, TABLE, VERSION
from .voxels import unpack

SHIPPED = Path(__file__).resolve().parent.parent / "assets" / "sweethome3d"
HOW = "make one with: fewstep data prepare sweethome3d --source DIR --out DIR"
Indices = Sequence[int] | npt.NDArray[np.int64] | Tensor


@dataclass(frozen=True)
class PreparedSet:
    """Objects with occupancy grids, picture tokens and a split. ``train`` and ``test`` are index arrays.

    ``flip`` stands for the mirrored object: ``occupancy(i, flip=True)`` belongs to ``tokens(i, view, flip=True)``.
    """

    folder: Path
    manifest: dict[str, Any]
    table: list[dict[str, str]]
    arrays: dict[str, npt.NDArray[Any]]

    @classmethod
    def load(cls, folder: Path | str = SHIPPED) -> PreparedSet:
        """Loads and checks a set; without an argument the shipped one (784 training and 96 test objects or so).

        Raises:
            FewstepError: the folder is missing, empty, no prepared set, of another version, or damaged.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FewstepError(f"prepared set: there is no folder {folder}; {HOW}")
        manifest = _manifest(folder)
        arrays = _arrays(folder)
        _check(folder, manifest, arrays)
        return cls(folder, manifest, _table(folder, len(arrays["split"])), arrays)

    def __len__(self) -> int:
        return len(self.arrays["split"])

    @property
    def resolution(self) -> int:
        """Voxels on a side."""
        return int(self.manifest["resolution"])

    @property
    def views(self) -> int:
        """Pictures of a training object, each also flipped. A test object has view 0, not flipped."""
        return int(self.arrays["tokens"].shape[1])

    @property
    def channels(self) -> int:
        """Width of a token."""
        return int(self.arrays["tokens"].shape[-1])

    @property
    def train(self) -> npt.NDArray[np.int64]:
        """Indices of the training objects, ascending."""
        return np.flatnonzero(self.arrays["split"] == TRAIN)

    @property
    def test(self) -> npt.NDArray[np.int64]:
        """Indices of the test objects, ascending; one of a cluster."""
        return np.flatnonzero(self.arrays["split"] == TEST)

    def occupancy(self, indices: Indices, flip: bool = False) -> Tensor:
        """Float [B,1,R,R,R], 1 where the surface passes; axes x, y, z with z up; mirrored in x with ``flip``."""
        grid = torch.from_numpy(unpack(self.arrays["occupancy"][np.asarray(indices)], self.resolution)).float()
        return (grid.flip(1) if flip else grid)[:, None]

    def tokens(self, indices: Indices, view: int = 0, flip: bool = False) -> Tensor:
        """Float32 [B,49,C]: the picture's tokens, row by row from the top left.

        Raises:
            FewstepError: no such view, or one of the objects has no picture there (test objects: view 0 only).
        """
        if not 0 <= view < self.views:
            raise invalid("view", view, f"0 to {self.views - 1}")
        at = np.asarray(indices)
        stored = self.arrays["tokens"][at, view, int(flip)]
        if not stored.any((-1, -2)).all():
            raise invalid("indices", at.tolist(), f"objects that have view {view}{' flipped' * flip} in the set")
        return torch.from_numpy(stored).float() * torch.from_numpy(self.arrays["token_scale"])

    def basis(self) -> TokenBasis:
        """The map that makes tokens of new pictures fit: ``ImageEncoder(prepared.basis())``."""
        mean, basis = (torch.from_numpy(self.arrays[key]).float() for key in ("pca_mean", "pca_basis"))
        return TokenBasis(mean, basis)

    def picture(self, index: int) -> npt.NDArray[np.uint8]:
        """The condition picture of a test object: RGB uint8 [112,112,3], on black.

        Raises:
            FewstepError: the object is not a test object, or the pictures cannot be read.
        """
        found = np.flatnonzero(self.test == index)
        if not len(found):
            raise invalid("index", index, "a test object; no other has its picture in the set")
        row, column = (int(part) * PICTURE for part in divmod(found[0], ACROSS))
        try:
            with Image.open(self.folder / PICTURES) as atlas:
                if atlas.height < row + PICTURE or atlas.width < column + PICTURE:
                    raise OSError(f"{atlas.width}x{atlas.height} pixels are too few")
                return np.asarray(atlas.convert("RGB").crop((column, row, column + PICTURE, row + PICTURE)))
        except (OSError, SyntaxError) as error:
            raise _broken(self.folder / PICTURES, error) from error


def _broken(path: Path, why: object) -> FewstepError:
    return FewstepError(f"prepared set: {path} cannot be used: {why}; {HOW}")


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise FewstepError(f"prepared set: {folder} is none, it has no {MANIFEST}; {HOW}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _broken(path, error) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise _broken(path, f"it does not describe a {FORMAT}")
    if manifest.get("version") != VERSION:
        raise _broken(path, f"it has version {manifest.get('version')!r}, this fewstep reads {VERSION}")
    return manifest


def _arrays(folder: Path) -> dict[str, npt.NDArray[Any]]:
    path = folder / ARRAYS
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except FileNotFoundError as error:
        raise _broken(path, "it is missing") from error
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise _broken(path, f"damaged or cut short ({error})") from error


def _check(folder: Path, manifest: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> None:
    try:
        n, r, v, c = manifest["counts"]["objects"], manifest["resolution"], manifest["views"], manifest["channels"]
    except (KeyError, TypeError) as error:
        raise _broken(folder / MANIFEST, f"it gives no {error}") from error
    shapes = {"occupancy": (n, -(-(r**3) // 8)), "tokens": (n, v, 2, TOKENS, c), "token_scale": (c,), "split": (n,)}
    shapes |= {"pca_mean": (WIDTH,), "pca_basis": (WIDTH, c)}
    for key, shape in shapes.items():
        if key not in arrays or arrays[key].shape != shape:
            got = arrays[key].shape if key in arrays else "nothing"
            raise _broken(folder / ARRAYS, f"{key} should have shape {shape} by the {MANIFEST}, found {got}")


def _table(folder: Path, count: int) -> list[dict[str, str]]:
    path = folder / TABLE
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise _broken(path, error) from error
    if len(rows) != count:
        raise _broken(path, f"it has {len(rows)} rows for {count} objects")
    return rows
