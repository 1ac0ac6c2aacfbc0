"""Writing files and folders that appear complete or not at all, with one message if the disk refuses; checksums."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fewstep.errors import FewstepError

TEMP = ".tmp-"  # prefix of what a killed run may leave behind
NO_SYNC = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # from file systems without fsync


class Unwritable(FewstepError):
    """A path that the disk refuses to write. Its arguments are the path and the reason."""

    def __str__(self) -> str:
        return f"{self.args[0]}: cannot be written: {self.args[1]}"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn whatever the block raises because of the disk into one ``Unwritable`` that names ``path``."""
    try:
        yield
    except FewstepError as error:
        if isinstance(error, Unwritable) and TEMP in str(error.args[0]):  # a file below a temporary folder
            raise Unwritable(path, error.args[1]) from error
        raise
    except Exception as error:
        if (reason := _refusal(error)) is None:
            raise
        raise Unwritable(path, reason) from error


def _refusal(error: BaseException | None) -> str | None:
    """Why the disk refused; None for an error that is not about the disk."""
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        if code := re.search(r"\(os error (\d+)\)", str(error)):  # SafetensorError, which is not an OSError
            return os.strerror(int(code[1]))
        if "inline_container" in str(error) or "PytorchStreamWriter" in str(error):  # torch.save, a RuntimeError
            return "the file is incomplete; is the disk full?"
        error = error.__cause__
    return None


@contextmanager
def new_file(final: Path) -> Iterator[Path]:
    """A temporary file of the same suffix to write into; at the end it replaces ``final``. Missing folders are made.

    Its mode follows the umask, even if the writer changes it.

    Raises:
        Unwritable: if the disk refuses (full, read-only); nothing is left behind then.
    """
    real = Path(os.path.realpath(final))
    temp = real.parent / f"{TEMP}{secrets.token_hex(6)}{real.suffix}"
    with writing(final), _new_parents(real):
        try:
            temp.touch()
            mode = temp.stat().st_mode & 0o777
            yield temp
            temp.chmod(mode)
            sync(temp)
            temp.replace(real)
        except BaseException:
            with suppress(OSError):
                temp.unlink(missing_ok=True)
            raise


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A temporary sibling folder to write into; at the end it replaces ``final``.

    Modes of files follow the umask.

    Raises:
        Unwritable: if the disk refuses (full, read-only); nothing is left behind then.
    """
    real = Path(os.path.realpath(final))
    temp = real.parent / f"{TEMP}{secrets.token_hex(6)}"
    with writing(final), _new_parents(real):
        try:
            temp.mkdir()
            yield temp
            mode = temp.stat().st_mode & 0o666
            for path in [p for p in temp.rglob("*") if p.is_file()]:
                path.chmod(mode)
                sync(path)
            sync(temp)
            discard(real)
            temp.rename(real)
            sync(real.parent)
        except BaseException:
            shutil.rmtree(temp, ignore_errors=True)
            raise


@contextmanager
def _new_parents(path: Path) -> Iterator[None]:
    """Make the folders above ``path``. If that or the block fails, the new ones are removed again."""
    missing = [parent for parent in path.parents if not parent.exists()]
    above = path.parents[len(missing)]
    if not above.is_dir():  # the message of mkdir would be that it exists
        raise NotADirectoryError(errno.ENOTDIR, f"{above} is not a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for parent in missing:
            with suppress(OSError):
                parent.rmdir()
        raise


def check_place(key: str, path: Path) -> None:
    """Check, before any work, that a file or folder can be written at ``path``, by writing a block there.

    Args:
        key: the option that names the path, for the message.

    Raises:
        FewstepError: for a read-only or full disk, a path below a file, a dangling link, a name that is too long.
    """
    folder = path
    try:
        if path.is_symlink() and not path.exists():
            raise FileNotFoundError(errno.ENOENT, f"a link to {os.readlink(path)}, which does not exist")
        if not path.is_dir():
            folder = next(parent for parent in path.absolute().parents if parent.exists())
        with tempfile.TemporaryFile(prefix=TEMP, dir=folder) as file:
            file.write(bytes(4096))
    except NotADirectoryError:
        raise _no_place(key, path, f"{folder} is not a folder") from None
    except OSError as error:
        raise _no_place(key, path, f"{error.strerror or error}") from None


def _no_place(key: str, path: Path, reason: str) -> FewstepError:
    return FewstepError(f"{key}: got {str(path)!r}; accepted: a path to write to ({reason})")


def discard(path: Path) -> None:
    """Remove a folder or file. A folder is renamed first, so that its name never holds half of it."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        temp = path.parent / f"{TEMP}{secrets.token_hex(6)}"
        path.rename(temp)
        shutil.rmtree(temp, ignore_errors=True)


def clean(parent: Path) -> None:
    """Remove what a killed run left behind in this folder."""
    for path in parent.glob(TEMP + "*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file atomically; raises as ``new_file`` does."""
    with new_file(path) as temp:
        temp.write_bytes(content)


def write_file(path: Path, text: str) -> None:
    """Replace a text file atomically; raises as ``new_file`` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically; raises as ``new_file`` does."""
    write_file(path, json.dumps(value, indent=2) + "\n")


def file_suffix(path: Path | str) -> str:
    """The suffix, in lower case, of a file that a user names (".glb"); "" for the name of a folder.

    That is a folder that exists, a name that ends in a slash, and one whose last dot does not begin a file type
    ("out_v1.0", "run.v2").
    """
    suffix = Path(path).suffix.lower()
    if os.path.isdir(path) or str(path).endswith(("/", os.sep)) or not re.search("[a-z]", suffix):
        return ""
    return "" if re.fullmatch(r"\.v\d+", suffix) else suffix


class LineFile:
    """A text file that lines are appended to. If the disk refuses a line, the file stays as it was.

    Raises:
        Unwritable: if the disk refuses, also from ``write``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("ab", buffering=0)

    def write(self, text: str) -> None:
        """Append text, without buffering."""
        size, rest = self.file.tell(), memoryview(text.encode())
        with writing(self.path):
            try:
                while rest:
                    rest = rest[self.file.write(rest) :]
            except OSError:
                with suppress(OSError):
                    self.file.truncate(size)
                raise

    def close(self) -> None:
        self.file.close()


def cache_folder() -> Path:
    """``FEWSTEP_CACHE``, else ``fewstep`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("FEWSTEP_CACHE") or Path(base) / "fewstep")


def sync(path: Path) -> None:
    """Flush a file or folder to disk, where the file system supports that."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


def sha256(path: Path) -> str:
    """The SHA-256 checksum of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def digest(value: Any) -> str:
    """The SHA-256 checksum of a JSON value; it does not depend on the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
