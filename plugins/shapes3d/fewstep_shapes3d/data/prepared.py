"""Reading a prepared set. Needs only numpy and torch, and Pillow for its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewstep.errors import invalid
from fewstep_shapes3d.data import SWEETHOME3D
from fewstep_shapes3d.data.attributes import CHANNELS, MIRRORED, features, join_codes
from fewstep_shapes3d.data.clusters import TEST, TRAIN, VALIDATION
from fewstep_shapes3d.data.reading import Arrays, broken, check, leave_out, read_arrays, read_manifest, read_table
from fewstep_shapes3d.data.setfiles import ACROSS, PICTURE, PICTURES, SURFACE
from fewstep_shapes3d.data.surface import Bytes
from fewstep_shapes3d.data.voxels import unpack
from fewstep_shapes3d.measures.features import POSITIONS, TokenBasis, with_positions

Indices = Sequence[int] | npt.NDArray[np.int64] | Tensor
HeldOutSplit = Literal["test", "validation"]


@dataclass(frozen=True)
class PreparedSet:
    """Objects with occupancy grids, picture tokens and a split. ``train`` and ``test`` are index arrays.

    ``flip`` stands for the mirrored object: ``occupancy(i, flip=True)`` belongs to ``tokens(i, view, flip=True)``.
    """

    folder: Path
    manifest: dict[str, Any]
    table: list[dict[str, str]]
    arrays: Arrays
    left_out: Sequence[str] = ()  # lines for the user: training objects that cannot be used
    held_out: HeldOutSplit = "test"

    @classmethod
    def load(
        cls, folder: Path | str = SWEETHOME3D, held_out: HeldOutSplit = "test", key: str = "data.root"
    ) -> PreparedSet:
        """Load and check a set; without an argument the shipped one (710 training and 96 test objects).

        Args:
            held_out: the split that ``test`` stands for. Choose settings on "validation", report on "test".
            key: what the user gave the folder as, for the message.

        Raises:
            FewstepError: the folder is missing, empty, not a prepared set, of another version, or damaged; or it lacks
                the validation objects that are asked for.
        """
        folder = Path(folder)
        manifest, arrays = read_manifest(folder, key), read_arrays(folder)
        check(folder, manifest, arrays)
        table = read_table(folder, len(arrays["split"]))
        if held_out == "validation" and VALIDATION not in arrays["split"]:
            raise invalid("data.held_out", held_out, f"'test': {folder} has no validation objects")
        return cls(folder, manifest, table, arrays, leave_out(arrays, table), held_out)

    def __len__(self) -> int:
        return len(self.arrays["split"])

    @property
    def resolution(self) -> int:
        """Voxels on a side."""
        return int(self.manifest["resolution"])

    @property
    def views(self) -> int:
        """Pictures per training object, each also flipped. A test object has view 0 only, not flipped."""
        return int(self.arrays["tokens"].shape[1])

    @property
    def channels(self) -> int:
        """Width of a token: the channels that are stored, and those of its position."""
        return int(self.arrays["tokens"].shape[-1]) + POSITIONS

    @property
    def train(self) -> npt.NDArray[np.int64]:
        """Indices of the training objects, ascending."""
        return np.flatnonzero(self.arrays["split"] == TRAIN)

    @property
    def test(self) -> npt.NDArray[np.int64]:
        """Indices of the held-out objects, ascending; in a set from catalogues, one per cluster."""
        return np.flatnonzero(self.arrays["split"] == (TEST if self.held_out == "test" else VALIDATION))

    @property
    def pictured(self) -> npt.NDArray[np.int64]:
        """Indices of the objects whose condition picture is in the set: those of every held-out split."""
        return np.flatnonzero(np.isin(self.arrays["split"], (TEST, VALIDATION)))

    def occupancy(self, indices: Indices, flip: bool = False) -> Tensor:
        """Float [B,1,R,R,R], 1 where the surface passes; axes x, y, z with z up; mirrored in x with ``flip``."""
        grid = torch.from_numpy(
            unpack(self.arrays["occupancy"][np.asarray(indices, dtype=np.int64)], self.resolution)
        ).float()
        return (grid.flip(1) if flip else grid)[:, None]

    @cached_property
    def surface_codes(self) -> list[Bytes]:
        """Per object uint8 [voxels,11] (see :mod:`.attributes`), the voxels in the C order of its grid.

        Raises:
            FewstepError: the set has no file of surface codes, or the file is damaged.
        """
        codes = join_codes(read_arrays(self.folder, SURFACE))
        lengths = np.unpackbits(self.arrays["occupancy"], axis=1).sum(1, dtype=np.int64)
        if codes.shape != (lengths.sum(), CHANNELS):
            raise broken(self.folder / SURFACE, f"{len(codes)} rows for {lengths.sum()} voxels")
        return np.split(codes, lengths.cumsum()[:-1])

    def surface(self, index: int, flip: bool = False) -> tuple[Tensor, Tensor]:
        """Coordinates int64 [T,3] of an object's voxels in C order, and features [T,11] of each; mirrored by ``flip``.

        Raises:
            FewstepError: see ``surface_codes``.
        """
        coords, codes = self.voxels(index), self.surface_codes[index]
        if not flip:
            return coords, features(codes)
        x, y, z = coords.T
        order = (((self.resolution - 1 - x) * self.resolution + y) * self.resolution + z).argsort()
        return self.voxels(index, flip), features(codes[:, MIRRORED])[order]

    def voxels(self, index: int, flip: bool = False) -> Tensor:
        """Coordinates int64 [T,3] of an object's voxels in C order."""
        return self.occupancy([index], flip)[0, 0].nonzero()

    def tokens(self, indices: Indices, view: int = 0, flip: bool = False) -> Tensor:
        """Float32 [B,49,C]: the picture's tokens with their positions, row by row from the top left.

        Raises:
            FewstepError: no such view, or one of the objects has no picture there (test objects: view 0 only).
        """
        if not 0 <= view < self.views:
            raise invalid("view", view, f"0 to {self.views - 1}")
        at = np.asarray(indices, dtype=np.int64)
        stored = self.arrays["tokens"][at, view, int(flip)]
        if not stored.any((-1, -2)).all():
            raise invalid("indices", at.tolist(), f"objects that have view {view}{' flipped' * flip} in the set")
        return with_positions(torch.from_numpy(stored).float() * torch.from_numpy(self.arrays["token_scale"]))

    def basis(self) -> TokenBasis:
        """The map that makes tokens of new pictures fit this set: ``ImageEncoder(prepared.basis())``."""
        mean, basis = (torch.from_numpy(self.arrays[key]).float() for key in ("pca_mean", "pca_basis"))
        return TokenBasis(mean, basis)

    def picture(self, index: int) -> npt.NDArray[np.uint8]:
        """The condition picture of a held-out object: RGB uint8 [112,112,3], on black.

        Raises:
            FewstepError: the object is not held out, or the pictures cannot be read.
        """
        found = np.flatnonzero(self.pictured == index)
        if not len(found):
            raise invalid("index", index, "a held-out object; no other has its picture in the set")
        row, column = (int(part) * PICTURE for part in divmod(found[0], ACROSS))
        if len(self._atlas) < row + PICTURE or self._atlas.shape[1] < column + PICTURE:
            raise broken(self.folder / PICTURES, f"{self._atlas.shape[1]}x{len(self._atlas)} pixels are too few")
        return self._atlas[row : row + PICTURE, column : column + PICTURE]

    @cached_property
    def _atlas(self) -> npt.NDArray[np.uint8]:
        """All pictures side by side: RGB uint8 [H,W,3], decoded once."""
        from PIL import Image

        try:
            with Image.open(self.folder / PICTURES) as atlas:
                return np.asarray(atlas.convert("RGB"))
        except (OSError, SyntaxError) as error:
            raise broken(self.folder / PICTURES, error) from error
