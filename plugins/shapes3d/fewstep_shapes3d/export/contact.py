"""Contact sheets: labelled rows of pictures in one file, plain or with notes, groups and a caption."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from fewstep.core.suite import SheetRow
from fewstep_shapes3d.export.files import check_suffix, write_whole

Picture = npt.NDArray[Any]  # [H, W] or [H, W, 3], floats in [0, 1] or uint8

MARK = "fewstep contact sheet"
GAP = 4
SIZE_OF_TEXT, CHARACTER, LINE = 18, 10, 22  # of the font, and about the width and height of a character
LETTERS = "abcdefghijklmnopqrstuvwxyz"  # their mean width is that of a character
TEXT, LEAD, SPACE = 19, 25, 26  # of a comparison: size of the font, line height, room around a group's line
GREY, LINES, WHITE = "#555555", "#c4c4c4", 250  # colours
MARGIN = 24  # around a strip


def contact_sheet(rows: Sequence[tuple[str, Sequence[Picture]]], path: Path, tile: int = 160) -> None:
    """Write the picture of :func:`contact_image`."""
    write_sheet(contact_image(rows, tile), path)


def write_sheet(image: Image.Image, path: Path) -> Path:
    """Write a sheet as a PNG file that names its origin, so that it is not taken for a picture of an object later.

    Raises:
        FewstepError: for another suffix than .png, or a place that cannot be written.
    """
    check_suffix(path, ".png")
    notes = PngInfo()
    notes.add_text("Software", MARK)
    return write_whole(path, lambda temp: image.save(temp, pnginfo=notes))


def is_sheet(path: Path) -> bool:
    """Whether :func:`write_sheet` wrote this file."""
    if not path.is_file():  # reading from a pipe would consume it
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


def compared(rows: Sequence[SheetRow], path: Path, caption: str, tile: int, wide: int = 290) -> None:
    """Write the sheet of a comparison: a caption, then rows with name and notes, and a line between groups.

    Args:
        rows: their objects are pictures.
        tile: pixels of a picture.
        wide: pixels of the column of names.
    """
    plain, bold = _font(TEXT), _font(TEXT, "-Bold")
    texts = [_wrapped(row.label, bold, wide) + _wrapped("\n".join(row.notes), plain, wide) for row in rows]
    names = [len(_wrapped(row.label, bold, wide)) for row in rows]
    breaks = [bool(at) and row.group != rows[at - 1].group for at, row in enumerate(rows)]
    heights = [max(tile, LEAD * len(lines)) + GAP + SPACE * cut for lines, cut in zip(texts, breaks, strict=True)]
    width = wide + GAP + max((len(row.objects) for row in rows), default=0) * (tile + GAP)
    above = _wrapped(caption, plain, width)
    sheet = Image.new("RGB", (width, LEAD * len(above) + 3 * GAP + sum(heights)), "white")
    pen, top = ImageDraw.Draw(sheet), LEAD * len(above) + 3 * GAP
    _lines(pen, (GAP, GAP), above, plain, GREY)
    for row, lines, name, cut, height in zip(rows, texts, names, breaks, heights, strict=True):
        if cut:
            pen.line((GAP, top + SPACE // 2 - GAP // 2, width - GAP, top + SPACE // 2 - GAP // 2), fill=LINES)
        start = top + SPACE * cut + (height - GAP - SPACE * cut - LEAD * len(lines)) // 2
        _lines(pen, (GAP, start), lines[:name], bold, "black")
        _lines(pen, (GAP, start + LEAD * name), lines[name:], plain, GREY)
        for column, picture in enumerate(row.objects):
            _place(sheet, pen, picture, (wide + GAP + column * (tile + GAP), top + SPACE * cut), tile)
        top += height
    write_sheet(sheet, path)


def strip(columns: Sequence[SheetRow], path: Path, caption: str, tile: int) -> None:
    """Write a strip: a column below the name of each of ``columns``, an object per row, and a caption at the bottom.

    Args:
        columns: their objects are pictures, the same number in each.
        tile: pixels of a picture.
    """
    plain, bold = _font(TEXT), _font(TEXT, "-Bold")
    heads = [_wrapped(column.label.replace(", ", ",\n"), bold, tile + GAP) for column in columns]
    count = max((len(column.objects) for column in columns), default=0)
    head, step = LEAD * max(map(len, heads), default=0), tile + MARGIN
    width = MARGIN + len(columns) * step
    below = _wrapped(caption, plain, width - 2 * MARGIN)
    sheet = Image.new("RGB", (width, head + count * step + LEAD * len(below) + 2 * MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (column, lines) in enumerate(zip(columns, heads, strict=True)):
        left = MARGIN + number * step
        for at, line in enumerate(lines):
            pen.text((left + tile // 2, MARGIN + LEAD * at), line, fill="black", font=bold, anchor="ma")
        for line_number, picture in enumerate(column.objects):
            _place(sheet, pen, picture, (left, MARGIN + head + line_number * step), tile)
    _lines(pen, (MARGIN, MARGIN + head + count * step), below, plain, GREY)
    write_sheet(sheet, path)


def _lines(pen: ImageDraw.ImageDraw, corner: tuple[int, int], lines: Sequence[str], font: Any, colour: str) -> None:
    for number, line in enumerate(lines):
        pen.text((corner[0], corner[1] + LEAD * number), line, fill=colour, font=font)


def _place(sheet: Image.Image, pen: ImageDraw.ImageDraw, picture: Picture, corner: tuple[int, int], tile: int) -> None:
    """A picture, or the word "nothing" where it is empty."""
    sheet.paste(_tile(picture, tile), corner)
    if _pixels(picture).min() >= WHITE:
        middle = (corner[0] + tile // 2, corner[1] + tile // 2)
        pen.text(middle, "nothing", fill=GREY, font=_font(TEXT), anchor="mm")


def as_png(picture: Picture) -> bytes:
    """The content of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(_pixels(picture)).save(buffer, format="PNG")
    return buffer.getvalue()


def closer(rows: Sequence[Sequence[Picture]]) -> list[list[Picture]]:
    """The pictures without the white margin that all of a column share: cropped to one square per column."""
    columns = list(zip(*rows, strict=True))
    squares = [_square(np.stack([_pixels(picture).reshape(*picture.shape[:2], -1).min(-1) for picture in column]))
               for column in columns]  # fmt: skip
    return [[picture[square] for picture, square in zip(row, squares, strict=True)] for row in rows]


def _square(pixels: Picture) -> tuple[slice, slice]:
    """The smallest square of pictures [N, S, S] that holds everything not white, with a little room."""
    rows, columns = (np.flatnonzero((pixels < WHITE).any(axes)) for axes in ((0, 2), (0, 1)))
    size = pixels.shape[1]
    if not len(rows):
        return slice(0, size), slice(0, size)
    side = min(int(1.06 * max(np.ptp(rows), np.ptp(columns))) + 4, size)
    starts = [int(np.clip((at[0] + at[-1] - side) // 2 + 1, 0, size - side)) for at in (rows, columns)]
    return slice(starts[0], starts[0] + side), slice(starts[1], starts[1] + side)


def _wrapped(text: str, font: Any, width: int) -> list[str]:
    """Lines of at most about ``width`` pixels; longer words are broken."""
    across = max(int((width - 2 * GAP) * len(LETTERS) / font.getlength(LETTERS)), 1)
    return [part for line in text.splitlines() for part in textwrap.wrap(line, across)]


def _pixels(picture: Picture) -> Picture:
    return picture if picture.dtype == np.uint8 else (picture.clip(0, 1) * 255).round().astype(np.uint8)


def _tile(picture: Picture, tile: int) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(_pixels(picture))).convert("RGB")
    return image.resize((tile, tile), Image.Resampling.LANCZOS) if image.size != (tile, tile) else image


def _font(size: int, weight: str = "") -> Any:
    """Matplotlib's sans serif, which has accents and arrows; without matplotlib Pillow's own font."""
    found = find_spec("matplotlib")  # not imported just for a path: that takes half a second
    if found is None or found.origin is None:
        return ImageFont.load_default(size)
    file = f"DejaVuSans{weight}.ttf"
    return ImageFont.truetype(str(Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / file), size)
