"""A textured triangle mesh in the axes of TRELLIS, read from an OBJ file with its materials.

TRELLIS is z up; Sweet Home 3D is y up with the front towards +z. (x, y, z) becomes (x, -z, y): the front looks
towards -y, x stays to the right of somebody who looks at the front, so mirroring x mirrors the picture.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.errors import FewstepError, need

Floats = npt.NDArray[np.float64]
Y_UP_TO_Z_UP = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])


@dataclass
class Material:
    """``colour`` is RGBA in [0,1]; ``texture`` RGBA uint8 [H,W,4] (first row at v=1) replaces its RGB."""

    colour: Floats
    texture: npt.NDArray[np.uint8] | None = None


@dataclass
class Mesh:
    """``vertices`` [V,3]; ``faces`` [F,3]; ``uv`` [V,2]; ``material`` [F] indexes ``materials``."""

    vertices: Floats
    faces: npt.NDArray[np.int64]
    uv: Floats
    material: npt.NDArray[np.int64]
    materials: list[Material]


def load_mesh(path: Path, rotation: Sequence[float] | None = None) -> Mesh:
    """Reads a model, turns it (``rotation``: nine numbers, row major, in the file's axes) and makes it z up.

    Raises:
        FewstepError: the file cannot be parsed, holds no face, or has coordinates that are not finite.
    """
    trimesh = need("trimesh")
    logging.getLogger("trimesh").setLevel(logging.ERROR)  # missing textures are common and harmless here
    try:
        scene = trimesh.load_scene(path, process=False)
        parts = [part for part in scene.dump() if isinstance(part, trimesh.Trimesh) and len(part.faces)]
        mesh = _join(parts) if parts else None
    except Exception as error:  # the parsers behind it raise anything at all on damaged files
        raise FewstepError(f"the model {path.name} cannot be read: {error or type(error).__name__}") from error
    if mesh is None:
        raise FewstepError(f"the model {path.name} has no faces")
    turn = np.eye(3) if rotation is None else np.asarray(rotation, dtype=np.float64).reshape(3, 3)
    mesh.vertices = mesh.vertices @ (Y_UP_TO_Z_UP @ turn).T
    if not np.isfinite(mesh.vertices[mesh.faces]).all():
        raise FewstepError(f"the model {path.name} has coordinates that are not finite")
    return mesh


def normalise(mesh: Mesh) -> Mesh:
    """Centres the bounding box of the used vertices at 0 and scales its longest side to 1, as TRELLIS does.

    Raises:
        FewstepError: the mesh has no extent.
    """
    used = mesh.vertices[np.unique(mesh.faces)]
    low, high = used.min(0), used.max(0)
    size = float((high - low).max())
    if size <= 0:
        raise FewstepError("the model has no extent: all its points coincide")
    return Mesh((mesh.vertices - (low + high) / 2) / size, mesh.faces, mesh.uv, mesh.material, mesh.materials)


def _join(parts: list[Any]) -> Mesh:
    start, vertices, faces, uvs, index, materials = 0, [], [], [], [], []
    for number, part in enumerate(parts):
        uv = getattr(part.visual, "uv", None)
        vertices.append(np.asarray(part.vertices, dtype=np.float64))
        faces.append(np.asarray(part.faces, dtype=np.int64) + start)
        uvs.append(np.zeros((len(part.vertices), 2)) if uv is None else np.asarray(uv, dtype=np.float64))
        index.append(np.full(len(part.faces), number))
        materials.append(_material(part.visual, has_uv=uv is not None))
        start += len(part.vertices)
    return Mesh(np.concatenate(vertices), np.concatenate(faces), np.concatenate(uvs), np.concatenate(index), materials)


def _material(visual: Any, has_uv: bool) -> Material:
    source = getattr(visual, "material", None)
    colour = np.array([0.7, 0.7, 0.7, 1.0])
    diffuse = getattr(source, "diffuse", None)
    if diffuse is not None:
        colour[:3] = np.asarray(diffuse, dtype=np.float64)[:3] / 255
    opacity = (getattr(source, "kwargs", None) or {}).get("d")
    if opacity is not None:
        colour[3] = float(np.clip(float(np.ravel(np.asarray(opacity, dtype=object))[-1]), 0, 1))
    image = getattr(source, "image", None) if has_uv else None
    try:
        return Material(colour, None if image is None else np.asarray(image.convert("RGBA")))
    except (OSError, SyntaxError):  # a damaged texture costs the texture, not the object
        return Material(colour)
