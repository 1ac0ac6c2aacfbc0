"""From a picture to the square that an encoder sees: as in the pipeline, and as in the training data.

They differ on purpose, as TRELLIS's own do: in the threshold of alpha, in how the box and its margin are rounded, in
the size, and in whether the product with alpha is rounded to 8 bits. Sources: golden README, "Dataset";
pipeline/facts.json, preprocess_image; dataset/facts.json, image condition.
"""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fewstep.errors import FewstepError, invalid
from fewstep_shapes3d.pictures.background import remove_background
from fewstep_shapes3d.pictures.loading import as_rgba, black_border, needs_background_removal

SIZE = 518  # 37 x 37 patches of 14 pixels
MARGIN = 1.2
ALPHA = 0.8 * 255  # the pipeline's own threshold
FEW, FAINT = 16, 8  # size in pixels and contrast of 255, below which a picture shows hardly anything
Background = Literal["remove", "keep"]
Box = tuple[int, int, int, int]
Floats = npt.NDArray[np.float32]


def prepare(
    image: Image.Image,
    name: str = "the picture",
    size: int | None = SIZE,
    background: Background = "remove",
    margin: float = MARGIN,
) -> Image.Image:
    """The object on black as TRELLIS's pipeline prepares it: a square RGB picture.

    Args:
        image: of any mode; one with transparency is cropped to its object.
        name: of the picture, for messages.
        size: of a side in pixels; None: as cropped.
        background: of a picture without transparency: "remove" it (with rembg) and crop, or "keep" it: the picture is
            used whole, padded to a square with black.
        margin: side of the crop in units of the object's longer side.

    Raises:
        FewstepError: no pixel is opaque enough to see an object, or the background cannot be removed.
    """
    rgba = as_rgba(image, name)
    if needs_background_removal(rgba):
        if background == "keep":
            warn_if_blank(rgba, rgba.size, name)
            return on_black(rgba, whole_box(rgba), size)
        rgba = remove_background(rgba, name)
    left, top, right, bottom = _extent(rgba, ALPHA, name)
    prepared = on_black(rgba, object_box(rgba, name, margin), size)
    warn_if_blank(prepared, (right - left + 1, bottom - top + 1), name)
    return prepared


def prepare_once(
    image: Image.Image, name: str = "the picture", size: int = SIZE, background: Background = "remove"
) -> Image.Image:
    """As :func:`prepare`; an opaque picture with a black border is taken as already prepared, and used whole."""
    rgba = as_rgba(image, name)
    ready = needs_background_removal(rgba) and black_border(rgba)
    return prepare(rgba, name, size, "keep" if ready else background)


def warn_if_blank(image: Image.Image, extent: tuple[int, int], name: str) -> None:
    """Warn if hardly anything can be seen: the object spans a few pixels, or everything has one colour."""
    wide, high = extent
    if max(wide, high) < FEW:
        warnings.warn(f"{name}: its object is only {wide} x {high} pixels; expect no likeness", stacklevel=3)
    elif max(high - low for low, high in image.convert("RGB").getextrema()) <= FAINT:  # type: ignore[misc]
        warnings.warn(f"{name}: no object can be seen, all of it is of one colour on black", stacklevel=3)


def object_box(rgba: Image.Image, name: str = "the picture", margin: float = MARGIN) -> Box:
    """The square around the pixels with alpha > 0.8, of ``margin`` times their longer side, centred on them.

    Raises:
        FewstepError: there is no such pixel.
    """
    left, top, right, bottom = _extent(rgba, ALPHA, name)
    x, y = (left + right) / 2, (top + bottom) / 2
    half = int(max(right - left, bottom - top) * margin) // 2 or 1  # 0 upstream, for so small an object
    return round(x - half), round(y - half), round(x + half), round(y + half)


def whole_box(rgba: Image.Image) -> Box:
    """The smallest square around the picture with the picture in its middle."""
    (width, height), half = rgba.size, max(rgba.size) / 2
    x, y = width / 2, height / 2
    return round(x - half), round(y - half), round(x + half), round(y + half)


def on_black(rgba: Image.Image, box: Box, size: int | None) -> Image.Image:
    """``box`` of the picture, resized to ``size`` (Lanczos, alpha too), times alpha, truncated to 8 bits; RGB."""
    return Image.fromarray((_premultiplied(rgba, box, size) * 255).astype(np.uint8))


def dataset_preparation(rgba: Image.Image, image_size: int, margin: float = MARGIN) -> Tensor:
    """The object on black as TRELLIS's training data are prepared: float32 [3, S, S] in [0, 1], not yet normalised.

    Raises:
        FewstepError: the picture's mode is not RGBA, it is transparent everywhere, or it shows a single pixel.
    """
    if rgba.mode != "RGBA":
        raise invalid("condition picture", rgba.mode, "a picture of mode RGBA")
    left, top, right, bottom = _extent(rgba, 0, "the condition picture")
    x, y, half = (left + right) / 2, (top + bottom) / 2, max(right - left, bottom - top) / 2 * margin
    box = (int(x - half), int(y - half), int(x + half), int(y + half))
    if box[2] <= box[0] or box[3] <= box[1]:
        raise FewstepError("condition picture: the object is a single pixel; accepted: a larger one")
    return torch.from_numpy(_premultiplied(rgba, box, image_size)).permute(2, 0, 1).contiguous()


def _extent(rgba: Image.Image, threshold: float, name: str) -> Box:
    """First and last column and row, both included, of the pixels with alpha above the threshold: (x, y, x, y)."""
    alpha = np.asarray(rgba.getchannel("A"))
    rows, columns = np.nonzero(alpha > threshold)
    if not len(rows):
        found = (
            f"; an object's is above {threshold:g} of 255, and the highest here is {alpha.max()}" if alpha.any() else ""
        )
        raise invalid("image", name, f"a picture of an object; it is transparent everywhere{found}")
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


def _premultiplied(rgba: Image.Image, box: Box, size: int | None) -> Floats:
    square = rgba.crop(box)
    square = square if size is None else square.resize((size, size), Image.Resampling.LANCZOS)
    pixels: Floats = np.asarray(square).astype(np.float32) / np.float32(255)
    return pixels[..., :3] * pixels[..., 3:]
