"""The files of one object in a data root, and how they are read.

Any problem with a file is an ``ItemError``; the data set decides what to do about it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fewstep.errors import FewstepError, first_line
from fewstep.texts import read_json

STRUCTURE, LATENTS, FEATURES = "ss_latents", "latents", "features"
VIEWS, CONDITION_VIEWS, VOXELS = "renders", "renders_cond", "voxels"
TRANSFORMS = "transforms.json"
Array = npt.NDArray[Any]


def picture_name(number: int) -> str:
    """The file of a view."""
    return f"{number:03d}.png"


class ItemError(FewstepError):
    """What is wrong with one object: a file that is missing, damaged or of the wrong shape."""


def read_arrays(path: Path, **shapes: tuple[int | None, ...]) -> list[Array]:
    """Arrays of an npz file by name, of these shapes (None: any size).

    Raises:
        ItemError: naming the file.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = [np.asarray(archive[name]) for name in shapes]
    except Exception as error:  # numpy raises almost anything on a damaged archive
        raise ItemError(f"{path}: {_why(error)}") from None
    for (name, shape), array in zip(shapes.items(), found, strict=True):
        same = len(shape) == array.ndim and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
        if not same or not array.size:
            wanted = ", ".join("any" if n is None else str(n) for n in shape)
            raise ItemError(f"{path}: {name} has shape {list(array.shape)}; accepted: [{wanted}]")
        if array.dtype.kind not in "iuf" or (array.dtype.kind == "f" and not np.isfinite(array).all()):
            raise ItemError(f"{path}: {name} holds values that are not finite numbers")
    return found


def read_frames(folder: Path) -> list[dict[str, Any]]:
    """The frames of a folder of pictures, each with a ``file_path``.

    Raises:
        ItemError: naming the file.
    """
    path = folder / TRANSFORMS
    try:
        frames = read_json(path)["frames"]
        if not frames or not all(isinstance(frame["file_path"], str) for frame in frames):
            raise ValueError("no frames")
    except FewstepError as error:
        raise ItemError(f"{error}; accepted: frames, each with a file_path") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ItemError(f"{path}: {_why(error)}; accepted: frames, each with a file_path") from None
    return list(frames)


def read_picture(path: Path) -> Image.Image:
    """An RGBA picture.

    Raises:
        ItemError: for a file that Pillow cannot read, or of another mode.
    """
    try:
        with Image.open(path) as opened:
            image: Image.Image = opened.copy()
    except Exception as error:  # Pillow's decoders raise almost anything on damaged bytes
        raise ItemError(f"{path}: {_why(error)}") from None
    if image.mode != "RGBA":
        raise ItemError(f"{path}: a picture of mode {image.mode}; accepted: RGBA")
    return image


def _why(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return f"{type(error).__name__}: {first_line(error)}"
