"""Which generated file belongs to which true object: pairs by file name, and what has no partner."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from fewstep.console import number_of
from fewstep.errors import FewstepError, invalid
from fewstep.files import sha256
from fewstep_shapes3d.data.meshfiles import UP, MeshFile, UpChoice, find_meshes

Missing = Literal["count", "leave-out"]
NAMED = 3  # names in a note
Files = dict[str, MeshFile]


@dataclass(frozen=True)
class Pairs:
    """The ``names`` of the scored objects, the ``true`` file of each, the files of each generated folder by label, and
    ``notes`` on what has no partner."""

    names: list[str]
    true: Files
    generated: dict[str, Files]
    notes: list[str] = field(default_factory=list)


def labelled(folders: Sequence[str]) -> dict[str, Path]:
    """Folders by label: NAME=DIR, or a folder alone, whose label is its name.

    Raises:
        FewstepError: a label twice.
    """
    found: dict[str, Path] = {}
    for text in folders:
        name, equals, rest = text.partition("=")
        named = bool(equals and name) and not Path(text).exists()
        path = Path(rest if named else text)
        label = name if named else path.resolve().name
        if label in found:
            raise FewstepError(
                f"GENERATED: two folders are called {label!r}; name them: first={found[label]} second={path}"
            )
        found[label] = path
    return found


def pair(generated: Mapping[str, Path], true: Path, up: UpChoice, true_up: UpChoice, missing: Missing) -> Pairs:
    """Pair files by their names without suffix: by the stem where all stems of a folder differ, else by the path.

    Args:
        generated: folders by label.
        true: the folder of true objects.
        up, true_up: see ``find_meshes``.
        missing: "count": every true object is scored; "leave-out": only those that some folder has.

    Raises:
        FewstepError: a folder is not there or holds no mesh, or fewer than two objects have a partner.
    """
    notes: list[str] = []
    paths = [_files(f"GENERATED {label}", label, path, up, notes) for label, path in generated.items()]
    truth = _files("TRUE", "TRUE", true, true_up, notes)
    if all(_differ(files) for files in (truth, *paths)):
        truth, *paths = ({PurePosixPath(name).name: file for name, file in files.items()} for files in (truth, *paths))
    known = set().union(*paths)
    if len(known & truth.keys()) < 2:
        shown = [", ".join(sorted(names)[:NAMED]) for names in (known, truth)]
        raise FewstepError(
            f"GENERATED and TRUE: {number_of(len(known & truth.keys()), 'file name')} in common; accepted: 2 or more, "
            f"without suffixes. Generated: {shown[0]}, ...; true: {shown[1]}, ..."
        )
    names = sorted(truth if missing == "count" else truth.keys() & known)
    left_out = truth.keys() - set(names)
    if left_out:
        notes.append(f"not scored, no folder has them: {_some(left_out)}")
    for label, files in zip(generated, paths, strict=True):
        if extra := files.keys() - truth.keys():
            notes.append(f"{label}: not scored, no true object of the name: {_some(extra)}")
        if lacking := set(names) - files.keys():
            notes.append(f"{label}: missing, counted as failed: {_some(lacking)}")
    return Pairs(names, truth, dict(zip(generated, paths, strict=True)), notes)


def _files(key: str, label: str, folder: Path, up: UpChoice, notes: list[str]) -> Files:
    """Files by path below the folder, without suffix; of several formats of one name, the first in ``UP``."""
    if folder.exists() and not folder.is_dir():
        raise invalid(key, str(folder), "a folder of mesh files")
    found: dict[str, list[MeshFile]] = {}
    for file in find_meshes(folder, up, key):
        found.setdefault(file.name, []).append(file)
    kinds = list(UP)
    chosen = {name: min(files, key=lambda file: kinds.index(_suffix(file))) for name, files in found.items()}
    if several := {_suffix(chosen[name]) for name, files in found.items() if len(files) > 1}:
        notes.append(f"{label}: of files in several formats {', '.join(sorted(several))} is scored")
    return chosen


def _suffix(file: MeshFile) -> str:
    return PurePosixPath(file.model).suffix.lower()


def _differ(files: Iterable[str]) -> bool:
    stems = [PurePosixPath(name).name for name in files]
    return len(set(stems)) == len(stems)


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - NAMED} more" if len(ordered) > NAMED else ""
    return ", ".join(ordered[:NAMED]) + more


def content(file: MeshFile) -> str:
    """A digest of a file and of what it is read with: buffers and textures of .gltf, materials and textures of .obj."""
    path = file.archive / file.model
    parts = [path, *(path.parent / name for name in _companions(path))]
    digests = [sha256(part) for part in parts if part.is_file()]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _companions(path: Path) -> list[str]:
    try:
        if path.suffix.lower() == ".gltf":
            tree: dict[str, Any] = json.loads(path.read_bytes())
            return [one["uri"] for kind in ("buffers", "images") for one in tree.get(kind, []) if "uri" in one]
        if path.suffix.lower() == ".obj":
            libraries = re.findall(r"^mtllib\s+(.+?)\s*$", path.read_text(errors="replace"), re.MULTILINE)
            texts = [part.read_text(errors="replace") for name in libraries if (part := path.parent / name).is_file()]
            return [
                *libraries,
                *(name for text in texts for name in re.findall(r"^\s*map_\w+.*?(\S+)\s*$", text, re.M)),
            ]
    except (OSError, ValueError, AttributeError, TypeError):  # damaged: reading the object will say so
        pass
    return []
