"""Folders of mesh files: .glb, .gltf, .obj, .stl, .ply and .off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from fewstep.errors import invalid, unknown
from fewstep_shapes3d.data.mesh import Mesh, Up, load_mesh

# The default axis that points up: glTF prescribes y, and most programs that write OBJ mean y; scanners, 3-D printers
# and ModelNet mean z.
UP: dict[str, Up] = {".glb": "y", ".gltf": "y", ".obj": "y", ".stl": "z", ".ply": "z", ".off": "z"}
KINDS = f"{', '.join(list(UP)[:-1])} or {list(UP)[-1]}"
UpChoice = Literal["auto", "y", "z"]


@dataclass(frozen=True)
class MeshFile:
    """The file ``model`` below the folder ``archive``. ``stamp`` is its size in bytes and modification time in ns."""

    archive: Path
    model: str
    up: Up
    stamp: tuple[int, int]

    creator, licence = "not stated", "not stated"

    @property
    def key(self) -> str:
        """The path below the folder, the same wherever the folder is."""
        return self.model

    @property
    def name(self) -> str:
        """The same without the suffix: in many collections every file is called "model"."""
        return str(PurePosixPath(self.model).with_suffix(""))

    @property
    def category(self) -> str:
        """The first folder on the path."""
        parts = PurePosixPath(self.model).parts
        return parts[0] if len(parts) > 1 else "Miscellaneous"

    def load(self) -> Mesh:
        """The mesh, z up. Raises FewstepError if it cannot be read."""
        return load_mesh(self.archive / self.model, up=self.up)


def find_meshes(
    source: Path | str | Sequence[Path | str], up: UpChoice = "auto", key: str = "--source"
) -> list[MeshFile]:
    """The mesh files of one or several folders, searched to any depth, sorted by path; a file stands for itself.

    Args:
        source: folders or files.
        up: the axis that points up in all of them; by default by their format (``UP``).
        key: what names the source, for messages.

    Raises:
        FewstepError: a named path does not exist or is of another kind, or there is no mesh file at all.
    """
    if up not in get_args(UpChoice):
        raise unknown("up", up, get_args(UpChoice))
    named = [Path(source)] if isinstance(source, (str, Path)) else [Path(part) for part in source]
    found: dict[Path, MeshFile] = {}
    for path in named:
        if not path.exists():
            raise invalid(key, str(path), f"a folder with {KINDS} files, or such a file; it does not exist")
        folder = path.resolve() if path.is_dir() else path.resolve().parent
        for file in sorted(folder.rglob("*")) if path.is_dir() else [path.resolve()]:
            if file.suffix.lower() in UP and file.is_file():
                status = file.stat()
                axis = UP[file.suffix.lower()] if up == "auto" else up
                model = file.relative_to(folder).as_posix()
                found[file] = MeshFile(folder, model, axis, (status.st_size, status.st_mtime_ns))
    if not found:
        raise invalid(key, ", ".join(map(str, named)), f"a folder with {KINDS} files; it holds none")
    return list(found.values())
