"""A textured triangle mesh in the axes of TRELLIS, read from a file with its materials.

TRELLIS is z up. glTF and Sweet Home 3D are y up with the front towards +z: (x, y, z) becomes (x, -z, y). The front then
faces -y, and +x stays to the right of a viewer in front, so mirroring x mirrors the picture.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fewstep.errors import FewstepError, first_line, need
from fewstep_shapes3d.data.materials import Floats, Look, Material, look_of

Up = Literal["y", "z"]
TO_Z_UP = {"y": np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]), "z": np.eye(3)}
GLTF = (".glb", ".gltf")
PACKED = ("KHR_draco_mesh_compression", "EXT_meshopt_compression")  # trimesh reads zeros from these, with a warning


class EmptyMesh(FewstepError):
    """A model that can be read but has no surface."""


@dataclass
class Mesh:
    """``vertices`` [V,3]; ``faces`` [F,3]; ``uv`` [V,2]; ``material`` [F] indexes ``materials``; ``tint`` [V,3] in
    [0,1], or None, multiplies the materials' RGB."""

    vertices: Floats
    faces: npt.NDArray[np.int64]
    uv: Floats
    material: npt.NDArray[np.int64]
    materials: list[Material]
    tint: Floats | None = None


def load_mesh(path: Path, rotation: Sequence[float] | None = None, up: Up = "y") -> Mesh:
    """Read a model as one mesh, z up, with a scene's node transforms applied.

    Args:
        path: a file of any kind that trimesh reads, with its materials and textures beside it.
        rotation: nine numbers, row major, in the file's axes, applied first.
        up: the axis that points up in the file.

    Raises:
        FewstepError: the file cannot be parsed, or has coordinates that are not finite.
        EmptyMesh: it has no faces.
    """
    trimesh = need("trimesh")
    logging.getLogger("trimesh").setLevel(logging.ERROR)  # missing textures are common and harmless here
    suffix = path.suffix.lower()
    try:
        packed = sorted(set(PACKED) & set(_required(path))) if suffix in GLTF else []
        scene = trimesh.load_scene(path, process=False)
        # Not scene.dump(): its copies lose the colours of vertices where there is a material.
        placed = [scene.graph[node] for node in scene.graph.nodes_geometry]
        parts = [(scene.geometry[name], place) for place, name in placed]
        parts = [part for part in parts if isinstance(part[0], trimesh.Trimesh) and len(part[0].faces)]
        mesh = _join(parts, suffix in GLTF) if parts else None
        finite = mesh is None or bool(np.isfinite(mesh.vertices[mesh.faces]).all())
    except Exception as error:  # the parsers raise almost anything on damaged files
        raise FewstepError(f"the model {path.name} cannot be read: {first_line(error)}") from error
    if packed:
        raise FewstepError(f"the model {path.name} is compressed ({packed[0]}); store it without compression")
    if mesh is None:
        raise EmptyMesh(f"the model {path.name} has no faces")
    if not finite:
        raise FewstepError(f"the model {path.name} has coordinates that are not finite")
    turn = np.eye(3) if rotation is None else np.asarray(rotation, dtype=np.float64).reshape(3, 3)
    mesh.vertices = mesh.vertices @ (TO_Z_UP[up] @ turn).T
    return mesh


def normalise(mesh: Mesh) -> Mesh:
    """Centre the bounding box of the used vertices at 0 and scale its longest side to 1, as TRELLIS does.

    Raises:
        EmptyMesh: the mesh has no extent.
    """
    used = mesh.vertices[np.unique(mesh.faces)]
    low, high = used.min(0), used.max(0)
    size = float((high - low).max())
    if size <= 0:
        raise EmptyMesh("the model has no extent: all its points coincide")
    return replace(mesh, vertices=(mesh.vertices - (low + high) / 2) / size)


def _required(path: Path) -> list[str]:
    """The extensions without which a glTF file cannot be read."""
    from fewstep_shapes3d.export.glb import read_tree

    tree = read_tree(path) if path.suffix.lower() == ".glb" else json.loads(path.read_bytes())
    return list(tree.get("extensionsRequired", []))


def _join(parts: list[tuple[Any, Floats]], linear: bool) -> Mesh:
    """One mesh from ``trimesh.Trimesh`` parts and their transforms [4,4]."""
    looks = [look_of(part, linear) for part, _ in parts]
    first = np.cumsum([0, *(len(part.vertices) for part, _ in parts)])[:-1]
    material = np.cumsum([0, *(len(look.materials) for look in looks)])[:-1]
    return Mesh(
        np.concatenate([part.vertices @ place[:3, :3].T + place[:3, 3] for part, place in parts]),
        np.concatenate([part.faces + at for (part, _), at in zip(parts, first, strict=True)]),
        np.concatenate([look.uv for look in looks]),
        np.concatenate([look.material + at for look, at in zip(looks, material, strict=True)]),
        [one for look in looks for one in look.materials],
        _tints(looks),
    )


def _tints(looks: list[Look]) -> Floats | None:
    if all(look.tint is None for look in looks):
        return None
    return np.concatenate([np.ones((len(look.uv), 3)) if look.tint is None else look.tint for look in looks])
