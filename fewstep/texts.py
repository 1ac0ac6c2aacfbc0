"""Reading text files that a user may have written, with any byte order mark."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from fewstep.errors import FewstepError

BOMS = (  # UTF-32 before UTF-16, whose mark it begins with
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark; the mark is taken off.

    Raises:
        FewstepError: for a file that cannot be read, or is no such text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FewstepError(f"{path}: cannot be read: {error.strerror or error}") from None
    encoding = next((name for mark, name in BOMS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        where = f"byte {error.start} ({error.reason})"
        raise FewstepError(f"{path}: no text in {encoding.upper()}: {where}; save it in UTF-8") from None


def read_json(path: Path) -> Any:
    """The value in a JSON file; raises FewstepError as ``read_text`` does, and for what is no JSON."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise FewstepError(f"{path}: truncated or no JSON ({error})") from None
