"""Folders and files that appear whole or not at all, and their checksums."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fewstep.errors import FewstepError

TEMP = ".tmp-"  # prefix of what a killed run may leave behind


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A temporary sibling to write into; it takes the name ``final`` at the end, replacing what had it.

    Raises:
        FewstepError: when the disk refuses (full, read-only); nothing is left behind then.
    """
    temp = final.parent / f"{TEMP}{final.name}-{os.getpid()}"
    try:
        shutil.rmtree(temp, ignore_errors=True)
        temp.mkdir(parents=True)
        yield temp
        for path in [p for p in temp.rglob("*") if p.is_file()] + [temp]:
            sync(path)
        discard(final)
        temp.rename(final)
        sync(final.parent)
    except BaseException as error:
        shutil.rmtree(temp, ignore_errors=True)
        if isinstance(error, OSError):
            raise FewstepError(f"{final}: cannot be written: {error.strerror or error}") from error
        raise


def discard(folder: Path) -> None:
    """Remove a folder; at no moment is half of it there under its name."""
    if not folder.exists():
        return
    temp = folder.parent / f"{TEMP}old-{folder.name}-{os.getpid()}"
    shutil.rmtree(temp, ignore_errors=True)
    folder.rename(temp)
    shutil.rmtree(temp, ignore_errors=True)


def clean(parent: Path) -> None:
    """Remove what a killed run left behind in this folder."""
    for path in parent.glob(TEMP + "*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file in one move.

    Raises:
        FewstepError: when the disk refuses.
    """
    temp = path.parent / f"{TEMP}{path.name}-{os.getpid()}"
    try:
        temp.write_bytes(content)
        sync(temp)
        temp.replace(path)
    except OSError as error:
        temp.unlink(missing_ok=True)
        raise FewstepError(f"{path}: cannot be written: {error.strerror or error}") from error


def write_file(path: Path, text: str) -> None:
    """Replace a text file in one move; raises as ``write_bytes`` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one move."""
    write_file(path, json.dumps(value, indent=2) + "\n")


def file_suffix(path: Path | str) -> str:
    """The suffix of a file that the user names (".glb", in lower case); "" where the name can only be a folder's.

    A folder is what is one already, a name that ends in a slash, and one whose last dot begins no kind of file
    ("out_v1.0", "run.v2").
    """
    suffix = Path(path).suffix.lower()
    if os.path.isdir(path) or str(path).endswith(("/", os.sep)) or not re.search("[a-z]", suffix):
        return ""
    return "" if re.fullmatch(r"\.v\d+", suffix) else suffix


def sync(path: Path) -> None:
    """Have a file or folder on the disk; folders cannot be synced everywhere."""
    with suppress(PermissionError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sha256(path: Path) -> str:
    """The checksum of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def digest(value: Any) -> str:
    """The checksum of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
