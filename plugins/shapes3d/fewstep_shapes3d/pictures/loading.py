"""Picture files of every common kind, opened upright as 8-bit RGBA."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fewstep.errors import invalid

OPAQUE = 255
DARK = 8  # of 255: the brightest that black becomes by compression
_WIDE = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # one channel of more than 8 bits: convert() would clip, not scale
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, OverflowError, MemoryError, Image.DecompressionBombError)


def load_picture(source: Path | str | IO[bytes] | Image.Image, name: str | None = None) -> Image.Image:
    """A picture as RGBA, turned upright by its EXIF orientation.

    Palette, grey, CMYK and 16-bit pictures are converted; of several frames the first is used, with a warning.

    Args:
        source: a path, an open file, or a picture that Pillow has opened.
        name: for messages; by default the file's.

    Raises:
        FewstepError: there is no such file, or it is not a picture that Pillow can decode.
    """
    if isinstance(source, Image.Image):
        return _decoded(source, name or "the picture")
    name = name or str(source)
    try:
        with Image.open(source) as image:
            return _decoded(image, name)
    except FileNotFoundError as error:
        raise invalid("image", name, "a picture file; it does not exist") from error
    except UnidentifiedImageError as error:  # its text says only the file's name
        raise invalid("image", name, "a picture (PNG, JPEG, WebP), which this is not") from error
    except _UNREADABLE as error:
        raise invalid("image", name, f"a picture (PNG, JPEG, WebP); {error}") from error


def _decoded(image: Image.Image, name: str) -> Image.Image:
    try:
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # a phone's second frame is a depth map or a preview
            warnings.warn(f"{name}: {frames} frames; the first is used", stacklevel=3)
        return as_rgba(ImageOps.exif_transpose(image), name)
    except _UNREADABLE as error:
        raise invalid("image", name, f"a picture (PNG, JPEG, WebP); {error}") from error


def as_rgba(image: Image.Image, name: str = "the picture") -> Image.Image:
    """The picture as 8-bit RGBA, whatever its mode.

    Raises:
        FewstepError: for pixels other than grey or colour of 8 or 16 bits (floating point, LAB).
    """
    if image.mode in ("F", "LAB"):
        raise invalid("image", name, f"8 or 16 bit grey or colour; its pixels are of mode {image.mode}")
    if image.mode in _WIDE:
        scaled = np.asarray(image).astype(np.float64) * (255 / 65535)
        image = Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))
    if image.mode in ("CMYK", "YCbCr", "HSV"):  # Pillow converts these to RGB only
        image = image.convert("RGB")
    return image.convert("RGBA")


def needs_background_removal(image: Image.Image) -> bool:
    """Whether no pixel is transparent, so that the object and what is behind it cannot be told apart."""
    lowest, _ = as_rgba(image).getchannel("A").getextrema()
    return lowest == OPAQUE


def black_border(image: Image.Image) -> bool:
    """Whether the outermost pixels are all black, as in a picture that was already prepared."""
    pixels = np.asarray(image.convert("RGB"))
    sides = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
    return max(int(side.max()) for side in sides) <= DARK
