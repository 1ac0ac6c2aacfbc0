"""What an object is conditioned on: one of its pictures, or one of its captions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from fewstep_shapes3d.pictures.preprocess import MARGIN, dataset_preparation
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep_trellis.official.files import CONDITION_VIEWS, ItemError, read_frames, read_picture
from fewstep_trellis.official.table import NAME, Row

Draw = Callable[[int], int]  # n to one of 0 .. n - 1
CAPTIONS = "captions"


def picture_paths(row: Row) -> list[Path]:
    """The object's condition pictures.

    Raises:
        ItemError: without a usable transforms.json.
    """
    folder = row.root / CONDITION_VIEWS / row.sha256
    return [folder / str(frame["file_path"]) for frame in read_frames(folder)]


def prepared_picture(path: Path, size: int, margin: float = MARGIN) -> Tensor:
    """A condition picture as TRELLIS trains on it: float32 [3, S, S] in [0, 1], on black, cropped to a square of
    ``margin`` times the object.

    Raises:
        ItemError: for a file that is not an RGBA picture, or a picture without an object.
    """
    image = read_picture(path)
    try:
        return dataset_preparation(image, size, margin)
    except FewstepError as error:
        raise ItemError(f"{path}: {error}") from None


def caption(row: Row, draw: Draw) -> str:
    """One of the object's captions, drawn at random.

    Raises:
        ItemError: for a cell that is not a JSON list of texts.
    """
    cell = row.text(CAPTIONS)
    try:
        found = json.loads(cell or "")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not found or not all(isinstance(text, str) for text in found):
        raise ItemError(f"{row.root / NAME}, line {row.line}, captions: got {cell!r}; accepted: a JSON list of texts")
    return str(found[draw(len(found))])
