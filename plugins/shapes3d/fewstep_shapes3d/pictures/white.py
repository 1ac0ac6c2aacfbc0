"""Condition pictures on white, for people; networks see them on black, as they are stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage  # type: ignore[import-untyped,unused-ignore]

from fewstep_shapes3d.pictures.loading import DARK, black_border


def on_white(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """RGB uint8 [H, W, 3] with its black background white; a picture without one as it is.

    Pixels on black hold colour times alpha, and alpha was not kept. At the outline it is estimated as the brightness
    relative to the brightest inner pixel next to it; further inside it is 1.
    """
    bright: npt.NDArray[Any] = picture.max(-1).astype(np.float32)
    black = bright <= DARK
    if black.all() or not black_border(Image.fromarray(picture)):
        return picture
    rim = ndimage.binary_dilation(black, np.ones((3, 3))) & ~black
    inner = ndimage.maximum_filter(np.where(black | rim, 0, bright), 3)
    inner = np.where(inner > 0, inner, ndimage.maximum_filter(bright, 5))  # thin parts are all outline
    alpha = np.where(rim, np.minimum(bright / np.maximum(inner, 1), 1), ~black)[..., None]
    found: npt.NDArray[np.uint8] = (picture * ~black[..., None] + 255 * (1 - alpha)).clip(0, 255).astype(np.uint8)
    return found
