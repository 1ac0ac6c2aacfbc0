"""Data roots in TRELLIS.2's layout: a folder for each role, every one with a table, merged by object.

Roots are described by JSON, ``{name: {role: folder}}``. TRELLIS.2 takes it as text; here it is a file, and its folders
are relative to the file's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fewstep_trellis.official.table import ID, NAME, Row, read_table

from fewstep.errors import FewstepError, invalid, unknown
from fewstep.texts import read_json

ROLES = ("base", "ss_latent", "shape_latent", "pbr_latent", "render_cond", "asset_stats")
WANTED = "JSON files {name: {role: folder}}, joined by commas: data.roots=FILE,FILE"


@dataclass(frozen=True)
class Root:
    """A named root, with its folders by role."""

    name: str
    folders: Mapping[str, Path]


@dataclass(frozen=True)
class MergedRow(Row):
    """An object's row over all tables of its root, and where the root's files are."""

    folders: Mapping[str, Path] = field(default_factory=dict)

    def folder(self, role: str) -> Path:
        """The folder of a role.

        Raises:
            FewstepError: the root has none.
        """
        if role not in self.folders:
            raise unknown(f"role in the root of {self.root}", role, self.folders)
        return self.folders[role]

    def file(self, role: str) -> Path:
        """The object's latents of a role."""
        return self.folder(role) / f"{self.sha256}.npz"


def read_roots(files: Sequence[Path]) -> list[Root]:
    """The roots that these files describe.

    Raises:
        FewstepError: no file, one that is not such JSON, an unknown role, a folder without a table.
    """
    if not files:
        raise invalid("data.roots", "", WANTED)
    return [root for file in files for root in _described(file)]


def _described(file: Path) -> list[Root]:
    try:
        found = read_json(file)
    except FewstepError as error:
        raise invalid("data.roots", str(file), f"{WANTED} ({error})") from None
    tables = isinstance(found, dict) and found and all(isinstance(folders, dict) for folders in found.values())
    if not tables or not all(isinstance(place, str) for folders in found.values() for place in folders.values()):
        raise invalid("data.roots", str(file), WANTED)
    return [
        Root(name, {role: _folder(file, name, role, place) for role, place in folders.items()})
        for name, folders in found.items()
    ]


def _folder(file: Path, name: str, role: str, place: str) -> Path:
    if role not in ROLES:
        raise unknown(f"role of {name!r} in {file}", role, ROLES)
    folder = file.parent / place
    if not (folder / NAME).is_file():
        raise invalid(f"{file}, {name}, {role}", str(folder), f"a folder with a {NAME}")
    return folder


def merged(root: Root) -> list[Row]:
    """The rows of all tables of a root, joined by object, in the order of identifiers.

    Each table has some of the columns and some of the objects; of two values for a cell the first counts.

    Raises:
        FewstepError: for a table that cannot be read.
    """
    rows: dict[str, dict[str, str]] = {}
    lines: dict[str, Row] = {}
    columns: dict[str, None] = {ID: None}
    for folder in root.folders.values():
        for row in read_table(folder):
            columns |= dict.fromkeys(row.cells)
            lines.setdefault(row.sha256, row)
            cells = rows.setdefault(row.sha256, {})
            for column in row.cells:
                if not cells.get(column) and row.text(column) is not None:
                    cells[column] = row.cells[column]
    blank = dict.fromkeys(columns, "")
    return [MergedRow(lines[key].root, lines[key].line, blank | rows[key], root.folders) for key in sorted(rows)]
