"""Contact sheets: labelled rows of pictures in one file."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from fewstep_shapes3d.export.files import check_suffix, write_whole

Picture = npt.NDArray[Any]  # [H, W] or [H, W, 3], floats in [0, 1] or uint8

MARK = "fewstep contact sheet"
GAP = 4
SIZE_OF_TEXT, CHARACTER, LINE = 18, 10, 22  # of the font, and about the width and height of a character


def contact_sheet(rows: Sequence[tuple[str, Sequence[Picture]]], path: Path, tile: int = 160) -> None:
    """Write the picture of :func:`contact_image`."""
    write_sheet(contact_image(rows, tile), path)


def write_sheet(image: Image.Image, path: Path) -> Path:
    """Write a sheet as a PNG file that says whose it is, so that it is not taken for a picture of an object later.

    Raises:
        FewstepError: for another suffix than .png, or a place that cannot be written.
    """
    check_suffix(path, ".png")
    notes = PngInfo()
    notes.add_text("Software", MARK)
    return write_whole(path, lambda temp: image.save(temp, pnginfo=notes))


def is_sheet(path: Path) -> bool:
    """Whether :func:`write_sheet` wrote this file."""
    if not path.is_file():  # reading would take from a pipe
        return False
    try:
        with path.open("rb") as file:
            return b"Software\0" + MARK.encode() in file.read(256)
    except OSError:
        return False


def contact_image(rows: Sequence[tuple[str, Sequence[Picture]]], tile: int = 160) -> Image.Image:
    """A picture with a row for each (label, pictures): labels at the left, wrapped; tiles of ``tile`` pixels."""
    font = _font(SIZE_OF_TEXT)
    characters = max(int(1.4 * tile / CHARACTER), 1)
    texts = [textwrap.wrap(label, characters, break_long_words=False) for label, _ in rows]
    wide = max((int(font.getlength(line)) for lines in texts for line in lines), default=0) + 3 * GAP
    columns = max((len(pictures) for _, pictures in rows), default=0)
    sheet = Image.new("RGB", (wide + columns * (tile + GAP), len(rows) * (tile + GAP) + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (lines, (_, pictures)) in enumerate(zip(texts, rows, strict=True)):
        top = GAP + row * (tile + GAP)
        for number, line in enumerate(lines):
            y = top + tile // 2 - LINE * len(lines) // 2 + number * LINE
            pen.text((GAP, y), line, fill="black", font=font)
        for column, picture in enumerate(pictures):
            sheet.paste(_tile(picture, tile), (wide + column * (tile + GAP), top))
    return sheet


def _tile(picture: Picture, tile: int) -> Image.Image:
    pixels = picture if picture.dtype == np.uint8 else (picture.clip(0, 1) * 255).round().astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")
    return image.resize((tile, tile), Image.Resampling.LANCZOS) if image.size != (tile, tile) else image


def _font(size: int) -> Any:
    """Matplotlib's sans serif, which has accents and arrows; without matplotlib Pillow's own font."""
    found = find_spec("matplotlib")  # not imported for the path of a file: that takes half a second
    if found is None or found.origin is None:
        return ImageFont.load_default(size)
    return ImageFont.truetype(str(Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
