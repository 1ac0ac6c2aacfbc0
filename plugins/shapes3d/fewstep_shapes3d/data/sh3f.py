"""Sweet Home 3D furniture catalogues: ``.sh3f`` files, zips of OBJ models beside a Java properties file.

Debian has five of them (package ``sweethome3d-furniture``, 820 models, CC0 and CC-BY 3.0). Nothing in one catalogue
may stop the reading of the others: what cannot be read is returned as :class:`Skipped`, with its reason.
"""

from __future__ import annotations

import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fewstep.errors import FewstepError, invalid
from fewstep_shapes3d.data.mesh import Mesh, load_mesh

CATALOGUE = "PluginFurnitureCatalog.properties"
_LINE = re.compile(r"^\s*(\w+)(?:#(\d+))?\s*[=:]\s*(.*?)\s*$")
# What reading a truncated, overwritten or encrypted zip raises.
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, KeyError, OSError, EOFError, RuntimeError, NotImplementedError)


@dataclass(frozen=True)
class Entry:
    """One model of a catalogue. ``rotation`` is row major and applies to column vectors (x right, y up, z front)."""

    key: str
    name: str
    category: str
    creator: str
    licence: str
    archive: Path
    model: str
    rotation: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

    def load(self) -> Mesh:
        """The mesh, z up. Raises FewstepError if it cannot be unpacked or read."""
        with tempfile.TemporaryDirectory(prefix="fewstep-") as folder:
            return load_mesh(extract_model(self, Path(folder)), self.rotation)


@dataclass(frozen=True)
class Skipped:
    """Something in the source that is not in the set, and why."""

    what: str
    reason: str


def find_catalogues(source: Path | str | Sequence[Path | str]) -> list[Path]:
    """The ``.sh3f`` files of a folder (searched to any depth), of a single file or of several, sorted by name.

    Raises:
        FewstepError: a named path does not exist, or there is no ``.sh3f`` file at all.
    """
    named = [Path(source)] if isinstance(source, (str, Path)) else [Path(part) for part in source]
    found: set[Path] = set()
    for path in named:
        if path.is_dir():
            found.update(inside for inside in path.rglob("*") if inside.suffix.lower() == ".sh3f" and inside.is_file())
        elif path.is_file():
            found.add(path)
        else:
            raise invalid("--source", str(path), "a folder with .sh3f files, or a .sh3f file; it does not exist")
    if not found:
        text = "a folder with .sh3f files (Debian package sweethome3d-furniture); it holds none"
        raise invalid("--source", ", ".join(map(str, named)), text)
    return sorted(found, key=lambda path: (path.name, str(path)))


def read_catalogues(files: Iterable[Path]) -> tuple[list[Entry], list[Skipped]]:
    """All entries of the catalogues in file order, and what could not be read."""
    entries: list[Entry] = []
    skipped: list[Skipped] = []
    for path in files:
        try:
            with zipfile.ZipFile(path) as archive:
                text = archive.read(CATALOGUE).decode("latin-1")
                members = set(archive.namelist())
        except ZIP_ERRORS as error:
            skipped.append(Skipped(path.name, _zip_reason(error)))
            continue
        found, bad = _entries(path, text, members)
        entries += found
        skipped += bad
    return entries, skipped


def extract_model(entry: Entry, folder: Path) -> Path:
    """Unpack the folder of an entry's model, with its materials and textures; return the model's path.

    Raises:
        FewstepError: the archive or one of the members cannot be read, or the model is empty.
    """
    parent = str(PurePosixPath(entry.model).parent)
    try:
        with zipfile.ZipFile(entry.archive) as archive:
            if archive.getinfo(entry.model).file_size == 0:
                raise FewstepError(f"the model {entry.model} is empty")
            inside = [n for n in archive.namelist() if str(PurePosixPath(n).parent) == parent and not n.endswith("/")]
            archive.extractall(folder, members=inside)
    except ZIP_ERRORS as error:
        raise FewstepError(f"the model {entry.model} cannot be unpacked: {error}") from error
    return folder / entry.model


def licence_text(path: Path) -> str:
    """The text of the catalogue's ``LICENSE.TXT``, or "" if it has none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read("LICENSE.TXT").decode("latin-1").replace("\r\n", "\n").strip()
    except ZIP_ERRORS:
        return ""


def short_licence(text: str) -> str:
    """``CC0 1.0``, ``CC-BY 3.0`` or ``CC-BY 3.0 US`` if the catalogue's wording says so, else its wording."""
    low = text.lower()
    if "public domain" in low or "cc0" in low or "cc-0" in low:
        return "CC0 1.0"
    if "attribution 3.0" in low:
        return "CC-BY 3.0 US" if "united states" in low else "CC-BY 3.0"
    return text or "not stated"


def _zip_reason(error: BaseException) -> str:
    if isinstance(error, KeyError):
        return f"the catalogue has no {CATALOGUE}"
    return f"the catalogue cannot be read: {error or type(error).__name__}"


def _entries(path: Path, text: str, members: set[str]) -> tuple[list[Entry], list[Skipped]]:
    shared: dict[str, str] = {}
    rows: dict[int, dict[str, str]] = {}
    for line in text.splitlines():
        match = None if line.lstrip().startswith(("#", "!")) else _LINE.match(line)
        if match:
            key, number, value = match.groups()
            target = shared if number is None else rows.setdefault(int(number), {})
            target[key] = re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), value)
    found: list[Entry] = []
    skipped: list[Skipped] = [] if rows else [Skipped(path.name, f"{CATALOGUE} names no model")]
    for number, row in sorted(rows.items()):
        entry = _entry(path, number, row, shared, members)
        (found if isinstance(entry, Entry) else skipped).append(entry)  # type: ignore[arg-type]
    return found, skipped


def _entry(path: Path, number: int, row: dict[str, str], shared: dict[str, str], members: set[str]) -> Entry | Skipped:
    what = f"{path.name}#{number} ({row.get('name', 'no name')})"
    missing = [key for key in ("name", "model") if not row.get(key)]
    if missing:
        return Skipped(what, f"the catalogue gives no {' and no '.join(missing)}")
    model = row["model"].lstrip("/")
    if model not in members or ".." in PurePosixPath(model).parts:
        return Skipped(what, f"the archive holds no {model}")
    rotation = Entry.rotation
    if row.get("modelRotation"):
        try:
            rotation = tuple(float(value) for value in row["modelRotation"].split())
        except ValueError:
            rotation = ()
        if len(rotation) != 9:
            return Skipped(what, f"modelRotation {row['modelRotation']!r} is not nine numbers")
    licence = short_licence(row.get("license") or shared.get("license", ""))
    creator = row.get("creator") or shared.get("provider") or "not stated"
    key, category = row.get("id") or what, row.get("category") or "Miscellaneous"
    return Entry(key, row["name"], category, creator, licence, path, model, rotation)
