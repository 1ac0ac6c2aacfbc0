"""Reading text files that a user may have written, with any byte order mark."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from fewstep.errors import FewstepError

BOMS = (  # UTF-32 before UTF-16, because its mark begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark; the mark is taken off.

    Raises:
        FewstepError: for a file that cannot be read, or is not text in its encoding.
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
        raise FewstepError(f"{path}: not text in {encoding.upper()}: {where}; save it in UTF-8") from None


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        FewstepError: as ``read_text`` does, and for text that is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise FewstepError(f"{path}: truncated or not JSON ({error})") from None
