"""Picture files of every common kind, opened upright as 8-bit RGBA."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fewstep.errors import invalid

OPAQUE = 255
_WIDE = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # one channel of more than 8 bits: convert() would clip, not scale
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, OverflowError, Image.DecompressionBombError)


def load_picture(path: Path | str) -> Image.Image:
    """Opens a picture file as RGBA, turned upright where it says how it was held (EXIF orientation).

    Palette, grey, CMYK and 16-bit files are converted; of several frames the first is used.

    Raises:
        FewstepError: there is no such file, or it is no picture that Pillow can decode.
    """
    try:
        with Image.open(path) as image:
            return as_rgba(ImageOps.exif_transpose(image), str(path))
    except FileNotFoundError as error:
        raise invalid("image", str(path), "a picture file; it does not exist") from error
    except _UNREADABLE as error:
        raise invalid("image", str(path), f"a picture (PNG, JPEG, WebP); {error}") from error


def as_rgba(image: Image.Image, name: str = "the picture") -> Image.Image:
    """The picture as 8-bit RGBA, whatever its mode.

    Raises:
        FewstepError: for pixels that are no grey or colour of 8 or 16 bits (floating point, LAB).
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
